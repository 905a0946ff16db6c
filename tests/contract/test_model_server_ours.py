"""What only our server has: health, metrics, a status page, where it listens."""

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

from grpc_health.v1 import health_pb2, health_pb2_grpc

from liveshelf.settings import Settings
from serving.model_client import ModelClient
from tests.contract.tfserving import END, Code, Model, Server, wait_until


def settings_for(model: Model) -> Settings:
    return Settings(model_server=model.server.address, model_name=model.name)


def health_of(server: Server, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(server.channel).Check(request, timeout=10).status  # type: ignore[no-any-return]


def test_healthy_without_a_model_and_serving_once_there_is_one(our_server: Server, exported: Callable[[int], Path]) -> None:
    shelf = Model(our_server, "shelf", exported)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

    async def versions() -> list[int]:
        async with ModelClient(settings_for(shelf)) as client:
            return await client.versions()

    assert not shelf.path.exists()
    assert (health_of(our_server, ""), health_of(our_server, "shelf")) == (serving, not_serving)
    assert asyncio.run(versions()) == []
    assert shelf.refused() == (Code.NOT_FOUND, "Servable not found for request: Latest(shelf)")

    shelf.path.mkdir()
    (shelf.path / "7").mkdir()  # half-written
    shelf.add(1)
    our_server.wait_available("shelf", {1})
    assert (health_of(our_server, ""), health_of(our_server, "shelf")) == (serving, serving)
    assert asyncio.run(versions()) == [1]


def get(server: Server, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=10) as response:
        return response.read().decode()  # type: ignore[no-any-return]


def test_http_health_and_metrics(our_server: Server, exported: Callable[[int], Path]) -> None:
    model = Model(our_server, "measured", exported).serve(1, 2)
    assert json.loads(get(our_server, "/healthz"))["models"]["measured"] == [2, 1]
    model.predict()
    metrics = get(our_server, "/metrics")
    assert 'liveshelf_model_server_requests_total{code="OK",method="Predict",model="measured"} 1.0' in metrics
    assert 'liveshelf_model_server_latest_version{model="measured"} 2.0' in metrics


def test_listens_on_loopback_only(our_server: Server) -> None:
    psutil = pytest.importorskip("psutil")
    connections = psutil.Process(our_server.process.pid).net_connections("tcp")  # type: ignore[union-attr]
    listening = [ip_address(c.laddr.ip.removeprefix("::ffff:")) for c in connections if c.status == "LISTEN"]
    assert len(listening) == 2
    assert all(address.is_loopback for address in listening), listening


def test_status_page_says_what_get_model_status_says(our_server: Server, exported: Callable[[int], Path]) -> None:
    """JSON of tensorflow_serving/model_servers/http_rest_api_handler.cc (ProcessModelStatusRequest): numbers of 64 bits are strings."""
    model = Model(our_server, "paged", exported).serve(1)
    model.add(2, lambda path: (path / "saved_model.pb").write_bytes(b"no protobuf"))
    wait_until(lambda: 2 in model.server.states("paged") and model.server.states("paged")[2] == END, "2 failed")
    failed, fine = json.loads(get(our_server, "/v1/models/paged"))["model_version_status"]
    assert fine == {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert (failed["version"], failed["state"]) == ("2", "END")
    assert failed["status"]["error_message"]
    assert json.loads(get(our_server, "/v1/models/paged/versions/1"))["model_version_status"] == [fine]
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(our_server, "/v1/models/nobody")
    assert caught.value.code == 404
    assert json.load(caught.value) == {"error": "Could not find any versions of model nobody"}


def test_loading_gives_way_to_requests_and_nothing_else_does(our_server: Server, exported: Callable[[int], Path]) -> None:
    """Threads that TensorFlow makes inherit the priority of the thread that makes them; only the loader's own may be low."""
    Model(our_server, "polite", exported).serve(1)
    psutil = pytest.importorskip("psutil")
    process = psutil.Process(our_server.process.pid)  # type: ignore[union-attr]
    low = [thread.id for thread in process.threads() if os.getpriority(os.PRIO_PROCESS, thread.id) > 0]
    assert len(low) == 1
