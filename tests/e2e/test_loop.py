"""One event travels the whole loop, on real parts: browser → Kafka → feature → score → impression → example → new model."""

import os
import signal
import time
import uuid
from ipaddress import ip_address

import psutil

from features.declarations import read_declarations
from features.encoder import Encoder
from features.feature_set import FeatureSet
from features.fold import Fold
from features.store import FeatureRows
from liveshelf.client import Client
from streams.pseudonym import Pseudonyms
from streams.records import Event, Example, Impression, Release, decode
from streams.topics import CLICKSTREAM, IMPRESSIONS, MODEL_RELEASES, TRAINING_EXAMPLES
from tests.conftest import read_all
from tests.e2e.conftest import Stack

FEATURES = FeatureSet(read_declarations(None))


def some_items(stack: Stack, client: Client, count: int) -> list[str]:
    answer = client.recommend(client_id="somebody-else", count=count)
    return [item.item_id for item in answer.items]


def test_one_event_travels_the_whole_loop(stack: Stack) -> None:
    """Each arrow of the loop once, with what arrives compared to what left."""
    client_id = f"e2e-{uuid.uuid4().hex}"
    shopper = Pseudonyms.open(stack.settings).shopper("", client_id, "")
    rows = FeatureRows(stack.settings, 5.0)
    with Client(stack.settings.scoring_address, deadline_ms=5_000) as client:
        wanted = some_items(stack, client, 40)[-1]
        before = client.recommend(client_id=client_id)
        assert not before.degraded, before.degraded_reason
        assert before.features_offset == -1

        # browser → clickstream
        event_id = uuid.uuid4().hex
        answer = stack.post(
            "/v1/events",
            {
                "client_id": client_id,
                "events": [
                    {"name": "view_item", "event_id": event_id, "params": {"items": [{"item_id": wanted, "item_category": "x"}]}}
                ],
            },
        )
        assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
        logged = [(p, o, decode(Event, v)) for p, o, key, v in read_all(stack.settings, CLICKSTREAM) if key == shopper.encode()]
        (partition, offset, event), *more = logged
        assert not more
        assert (event.event_id, event.shopper, event.items[0].item_id) == (event_id, shopper, wanted)

        # clickstream → the shopper's row in the online store, exactly as the pure fold makes it
        row = stack.until(lambda: rows.read_shopper(shopper, FEATURES), "the shopper's row is in the store")
        expected = FEATURES.shopper(shopper)
        Fold(FEATURES).shopper(expected, event, partition, offset)
        assert row == expected

        # row → a changed shelf
        after = client.recommend(client_id=client_id)
        assert after.features_offset == offset
        assert not after.degraded, after.degraded_reason
        assert [(i.item_id, i.score) for i in after.items] != [(i.item_id, i.score) for i in before.items]

        # shelf → impression, with the features as served
        def impression_of(request_id: str) -> Impression | None:
            found = [decode(Impression, v) for _, _, key, v in read_all(stack.settings, IMPRESSIONS) if key == shopper.encode()]
            return next((i for i in found if i.request_id == request_id), None)

        impression = stack.until(lambda: impression_of(after.request_id), "the impression is logged")
        served = impression.features
        assert (served.version, served.partition, served.offset) == (FEATURES.version, partition, offset)
        encoder = Encoder(FEATURES)
        inputs, recomputed = encoder.decode(served), encoder.shopper(row, served.time_ms)
        assert {name: inputs[name].tolist() for name in recomputed} == {name: array.tolist() for name, array in recomputed.items()}
        assert impression.items == served.candidates == [i.item_id for i in after.items]
        assert impression.model_version == after.model_version

        # impression + click → one labelled example
        clicked = after.items[3].item_id
        answer = stack.post(
            "/v1/events",
            {"client_id": client_id, "name": "select_item", "request_id": after.request_id, "items": [{"item_id": clicked}]},
        )
        assert answer.status_code == 202

        def examples() -> list[Example]:
            return [decode(Example, v) for _, _, _, v in read_all(stack.settings, TRAINING_EXAMPLES)]

        open_impressions = len(read_all(stack.settings, IMPRESSIONS))
        stack.until(lambda: len(examples()) == open_impressions, "every window is closed")
        mine = [e for e in examples() if e.request_id == after.request_id]
        assert [e.clicked for e in mine] == [[int(item == clicked) for item in impression.items]]
        assert mine[0].features == impression.features

        # examples → a new version that has consumed exactly them
        step = stack.step()
        assert step["consumed"] == len(examples())
        assert step["outcome"] == "promoted", step
        assert step["version"] == after.model_version + 1
        stack.until(lambda: stack.model() == step["version"], "the new version answers")
        assert client.recommend(client_id=client_id).model_version == step["version"]
        release = decode(Release, read_all(stack.settings, MODEL_RELEASES)[-1][3])
        assert (release.version, release.parent) == (step["version"], after.model_version)
        ends = {f"{TRAINING_EXAMPLES}/{p}": o + 1 for p, o, _, _ in read_all(stack.settings, TRAINING_EXAMPLES)}
        assert {tp: release.offsets[tp] for tp in ends} == ends


def test_a_raw_id_is_stored_nowhere(stack: Stack) -> None:
    """After an event and a shelf, the id is in no file of the data directory: log, store, logs, checkpoints."""
    secret = f"raw-{uuid.uuid4().hex}"
    assert (
        stack.post(
            "/v1/events", {"client_id": secret, "session_id": secret, "name": "view_item", "items": [{"item_id": "sku"}]}
        ).status_code
        == 202
    )
    assert stack.post("/v1/events", {"client_id": secret, "user_id": secret, "name": "no_such_event"}).status_code == 400
    with Client(stack.settings.scoring_address, deadline_ms=5_000) as client:
        stack.until(lambda: client.recommend(client_id=secret).features_offset >= 0, "the event is in the features")
    for file in stack.settings.data_path.rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file


def test_nothing_listens_beyond_loopback(stack: Stack) -> None:
    """Of every process that `liveshelf up` started, and of those that they started."""
    up = psutil.Process(stack.json("status")["pid"])
    listening = {
        (ip_address(connection.laddr.ip.removeprefix("::ffff:")), connection.laddr.port)
        for process in (up, *up.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    settings = stack.settings
    asked = {settings.kafka_port, settings.store_port, settings.collector_port, settings.scoring_port, settings.model_server_port}
    assert asked <= {port for _, port in listening}
    print("listening:", ", ".join(sorted(f"{address}:{port}" for address, port in listening)))
    assert [f"{address}:{port}" for address, port in listening if not address.is_loopback] == []


def test_any_part_killed_comes_back_and_the_loop_goes_on(stack: Stack) -> None:
    """kill -9 of every part at once: all are healthy again, and a new event changes a shelf."""
    state = stack.json("status")
    for part in state["parts"]:
        os.kill(part["pid"], signal.SIGKILL)

    def healed() -> bool:
        done = stack.liveshelf("status", "--json")
        return done.returncode == 0 and not {p["pid"] for p in state["parts"]} & {p["pid"] for p in stack.json("status")["parts"]}

    stack.until(healed, "every part is healthy again", timeout_s=150)
    client_id = f"after-{uuid.uuid4().hex}"
    answer = stack.until(
        lambda: (
            (
                r := stack.post("/v1/events", {"client_id": client_id, "name": "view_item", "items": [{"item_id": "sku"}]})
            ).status_code
            == 202
            and r
        ),
        "an event is accepted",
    )
    assert answer.json()["accepted"] == 1
    with Client(stack.settings.scoring_address, deadline_ms=5_000) as client:
        stack.until(lambda: client.recommend(client_id=client_id).features_offset >= 0, "the event is in the features")
        stack.until(lambda: not client.recommend(client_id=client_id).degraded, "the shelf is not degraded")


def test_unknown_shopper_and_item(stack: Stack) -> None:
    unknown = stack.liveshelf("features", "show", "nobody")
    assert unknown.returncode == 4
    assert "no events of client 'nobody'" in unknown.stderr.replace("\n", " ")
    shelf = stack.json("recommend", "--client", f"new-{time.time_ns()}")
    assert len(shelf["items"]) == 10


def test_a_second_up_is_refused(stack: Stack) -> None:
    second = stack.liveshelf("up", "--json")
    assert second.returncode == 5
    pid = stack.json("status")["pid"]
    assert str(pid) in second.stderr
    assert psutil.pid_exists(pid)
