"""The end-to-end suite that any running stack must pass, through its public interfaces only.

LIVESHELF_STACK=embedded (or unset)   `liveshelf up`, started by these tests
LIVESHELF_STACK=addresses             a stack that runs already and has a model; the settings say where: LIVESHELF_COLLECTOR and
                                      LIVESHELF_SCORING, and LIVESHELF_HOST with the ports for health and the trainer. It gets a few events
                                      of shoppers that nobody else has, and one training step.

`make test-compose` runs it against docker-compose.yml.
"""

import uuid

import httpx
import pytest

from liveshelf.client import Client
from liveshelf.errors import LiveshelfError
from tests.e2e.conftest import Stack

WINDOW_SPARE_S = 90.0


def test_one_event_travels_the_whole_loop(any_stack: Stack) -> None:
    """Event → changed shelf → impression → click → example → a step that learns from it, and whose version answers if it is better."""
    client_id = f"suite-{uuid.uuid4().hex}"
    with Client(any_stack.settings.scoring_address, deadline_ms=5_000, token=any_stack.settings.scoring_token) as client:
        before = client.recommend(client_id=client_id)
        assert not before.degraded, before.degraded_reason
        seen = [{"item_id": before.items[-1].item_id}]
        event = {"client_id": client_id, "name": "view_item", "event_id": uuid.uuid4().hex, "items": seen}
        assert any_stack.post("/v1/events", event).status_code == 202
        after = any_stack.until(
            lambda: (s := client.recommend(client_id=client_id)).features_offset > before.features_offset and s,
            "the event is in the shelf",
        )
        assert [(i.item_id, i.score) for i in after.items] != [(i.item_id, i.score) for i in before.items]
        clicked = [{"item_id": after.items[3].item_id}]
        click = {"client_id": client_id, "name": "select_item", "request_id": after.request_id, "items": clicked}
        assert any_stack.post("/v1/events", click).status_code == 202
        live = any_stack.model()
        window_s = any_stack.settings.feedback_window_s + WINDOW_SPARE_S
        step = any_stack.until(lambda: (s := any_stack.step())["consumed"] and s, "examples reach the trainer", window_s)
        if step["outcome"] == "promoted":
            any_stack.until(lambda: any_stack.model() == step["version"], "the new version answers")
            assert client.recommend(client_id=client_id).model_version > live


def test_a_bad_event_is_refused_with_its_reason_and_harms_nobody(any_stack: Stack) -> None:
    client_id = f"suite-{uuid.uuid4().hex}"
    refused = any_stack.post("/v1/events", {"client_id": client_id, "name": "no_such_event"})
    assert (refused.status_code, "no_such_event" in refused.text) == (400, True)
    good = {"client_id": client_id, "name": "view_item", "items": [{"item_id": "sku-00001"}]}
    assert any_stack.post("/v1/events", good).json()["accepted"] == 1
    with Client(any_stack.settings.scoring_address, deadline_ms=5_000, token=any_stack.settings.scoring_token) as client:
        any_stack.until(lambda: client.recommend(client_id=client_id).features_offset >= 0, "the good event is in the features")


def test_grpc_and_http_give_a_whole_shelf_to_somebody_new(any_stack: Stack) -> None:
    settings = any_stack.settings
    with Client(settings.scoring_address, deadline_ms=5_000, token=settings.scoring_token) as client:
        asked = client.recommend(client_id=f"suite-{uuid.uuid4().hex}", count=7)
        ranked = client.rank([item.item_id for item in reversed(asked.items)], client_id=f"suite-{uuid.uuid4().hex}")
        with pytest.raises(LiveshelfError, match="count"):
            client.recommend(client_id="suite", count=-1)
    assert [item.position for item in asked.items] == list(range(7))
    assert {item.item_id for item in ranked.items} == {item.item_id for item in asked.items}
    answer = httpx.post(
        f"http://{settings.scoring_address.rpartition(':')[0]}:{settings.scoring_http_port}/v1/recommend",
        json={"shopper": {"client_id": f"suite-{uuid.uuid4().hex}"}, "count": 7},
        headers={"authorization": f"Bearer {settings.scoring_token}"} if settings.scoring_token else {},
        timeout=10,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    assert len({item["item_id"] for item in answer.json()["items"]}) == 7


def test_every_role_says_how_it_is(any_stack: Stack) -> None:
    settings = any_stack.settings
    for port in (settings.agents_metrics_port, settings.joiner_metrics_port, settings.scoring_metrics_port, settings.trainer_port):
        base = f"http://{settings.host}:{port}"
        assert httpx.get(f"{base}/readyz", timeout=5, trust_env=False).status_code == 200, port
        assert "# TYPE" in httpx.get(f"{base}/metrics", timeout=5, trust_env=False).text, port
