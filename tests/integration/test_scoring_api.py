"""The scoring process's edge on real parts: events into a real Kafka, a slow model server that is left alone, a Kafka that is away."""

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event as Flag
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from features.store import FeatureRows
from liveshelf.client import Client, Event, EventItem
from liveshelf.errors import UnavailableError
from liveshelf.local.parts import role_environment
from liveshelf.settings import Settings
from liveshelf.v1 import recommendation_pb2 as pb
from liveshelf.v1 import recommendation_pb2_grpc as pb_grpc
from serving import tfserving_pb2
from serving.model_client import AVAILABLE
from serving.tensors import encode_tensor
from streams.pseudonym import Pseudonyms
from streams.records import Event as Record
from streams.records import decode
from streams.topics import CLICKSTREAM
from tests.conftest import HOST, free_port, local_settings, read_all, running, wait_for_port

RECOMMENDATIONS, EVENTS = "liveshelf.v1.RecommendationService", "liveshelf.v1.EventService"


@contextmanager
def scorer(settings: Settings, home: Path) -> Iterator[Settings]:
    log = home / "scoring.log"
    FeatureRows(settings, 5.0).register_first()
    with running([sys.executable, "-m", "serving.service"], log, env=role_environment(settings, os.environ)) as process:
        wait_for_port(settings.scoring_port, process, log)
        yield settings


def until(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail("not in time")


def serving(settings: Settings, service: str) -> bool:
    with grpc.insecure_channel(settings.scoring_address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture(scope="module")
def slow_model() -> Iterator["SlowModel"]:
    model = SlowModel()
    yield model
    model.server.stop(0).wait()


class SlowModel:
    """A model server that describes itself at once, and never finishes a `rank`; it notes who asked and who hung up."""

    def __init__(self) -> None:
        self.asked, self.given_up = Flag(), Flag()
        self.feature_version = ""
        handlers = {
            "PredictionService": ("Predict", self._predict, tfserving_pb2.PredictRequest),
            "ModelService": ("GetModelStatus", self._status, tfserving_pb2.GetModelStatusRequest),
        }
        self.server = grpc.server(ThreadPoolExecutor(8))
        for service, (name, call, request) in handlers.items():
            handler = grpc.unary_unary_rpc_method_handler(call, request.FromString, lambda message: message.SerializeToString())
            self.server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", {name: handler}),)
            )
        self.address = f"{HOST}:{free_port()}"
        assert self.server.add_insecure_port(self.address)
        self.server.start()

    def _status(self, request: Any, context: Any) -> Any:
        answer = tfserving_pb2.GetModelStatusResponse()
        answer.model_version_status.add(version=1, state=AVAILABLE)
        return answer

    def _predict(self, request: Any, context: Any) -> Any:
        answer = tfserving_pb2.PredictResponse()
        if request.model_spec.signature_name == "describe":
            encode_tensor(np.array([self.feature_version.encode()], dtype=object), answer.outputs["feature_version"])
            return answer
        hung_up = Flag()
        context.add_callback(hung_up.set)
        self.asked.set()
        if hung_up.wait(30) and not context.is_active():
            self.given_up.set()
        return answer


@pytest.fixture(scope="module")
def settings(kafka: Settings, store: str, slow_model: SlowModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A scorer whose model server takes for ever, and which would wait for it a minute."""
    home = tmp_path_factory.mktemp("scoring-api")
    settings = local_settings(
        home,
        kafka=kafka.kafka,
        store=store,
        partitions=kafka.partitions,
        model_server=slow_model.address,
        model_timeout_ms=60_000,
        recommend_deadline_ms=60_000,
    )
    slow_model.feature_version = FeatureRows(settings, 5.0).newest().version
    with scorer(settings, home) as settings:
        until(lambda: serving(settings, RECOMMENDATIONS) and serving(settings, EVENTS))
        until(lambda: httpx.get(f"http://{HOST}:{settings.scoring_metrics_port}/readyz", trust_env=False).json()["model"])
        yield settings


@pytest.mark.parametrize("how", ["cancelled", "deadline", "http"])
def test_a_call_that_was_given_up_is_given_up_at_the_model_server(settings: Settings, slow_model: SlowModel, how: str) -> None:
    """Whether its caller cancels it, its deadline passes, or its browser goes away: the model server's work stops within a second."""
    slow_model.asked.clear()
    slow_model.given_up.clear()
    request = pb.RankRequest(shopper=pb.Shopper(client_id="c"), item_ids=["a", "b"])
    started = time.monotonic()
    if how == "http":
        url = f"http://{HOST}:{settings.scoring_http_port}/v1/rank"
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json={"shopper": {"client_id": "c"}, "item_ids": ["a", "b"]}, timeout=1.0, trust_env=False)
    else:
        with grpc.insecure_channel(settings.scoring_address) as channel:
            call = channel.unary_unary(f"/{RECOMMENDATIONS}/Rank", request_serializer=pb.RankRequest.SerializeToString).future(
                request, timeout=1.0 if how == "deadline" else 60.0
            )
            assert slow_model.asked.wait(10)
            if how == "cancelled":
                call.cancel()
            else:
                # At its deadline the caller has its fallback shelf, in time, or gives up; either way the model is left alone.
                call.exception()
    assert slow_model.given_up.wait(10)
    assert time.monotonic() - started < 5


def test_a_deadline_is_met_although_the_model_server_is_late(settings: Settings) -> None:
    with Client(settings.scoring_address) as client:
        client.rank(["a"], client_id="c", deadline_ms=1_000)  # connects
        started = time.monotonic()
        answer = client.rank(["a", "b"], client_id="c", deadline_ms=400, with_timings=True)
        assert time.monotonic() - started < 0.4
    assert [item.item_id for item in answer.items] == ["a", "b"]
    assert answer.degraded
    assert answer.timings[-1].stage == "total"


def test_events_over_grpc_stand_in_kafka_when_ok_is_answered(settings: Settings) -> None:
    """Read back right after the answer: every accepted event, under its shopper, once although it was sent twice with one id."""
    mark = uuid.uuid4().hex
    events: list[Any] = [
        Event(name="view_item", client_id=mark, items=[EventItem(item_id=f"item-{n}")], event_id=f"{mark[:20]}-{n}")
        for n in range(5)
    ]
    with Client(settings.scoring_address) as client:
        answer = client.record_events([*events, Event(name="view_item", client_id=mark)])
    assert answer.accepted == 5
    assert [(r.index, r.field, r.reason) for r in answer.refusals] == [(5, "items", "missing_field")]
    shopper = Pseudonyms.open(settings).shopper("", mark, "")
    found = [decode(Record, value) for _, _, key, value in read_all(settings, CLICKSTREAM) if key == shopper.encode()]
    assert [record.event_id for record in found] == [event.event_id for event in events]
    assert [record.items[0].item_id for record in found] == [f"item-{n}" for n in range(5)]


def test_without_kafka_events_are_unavailable_and_shelves_are_not(settings: Settings, tmp_path: Path) -> None:
    """The health of each service says so, and RecordEvents says when to come again."""
    alone = local_settings(tmp_path, recommend_deadline_ms=2_000)
    with scorer(alone, tmp_path), Client(alone.scoring_address, 2_000) as client:
        assert client.recommend(client_id="c").degraded
        assert not serving(alone, EVENTS)
        with pytest.raises(UnavailableError):  # asked again until its deadline
            client.record_events([Event(name="view_item", client_id="c", items=[EventItem(item_id="a")])], deadline_ms=1_500)
        with (
            grpc.insecure_channel(alone.scoring_address) as channel,
            pytest.raises(grpc.RpcError, match="has not answered yet") as caught,
        ):
            pb_grpc.EventServiceStub(channel).RecordEvents(pb.RecordEventsRequest(), timeout=5)
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
