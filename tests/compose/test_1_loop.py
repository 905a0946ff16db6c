"""One event around the loop of docker-compose.yml, and what its containers may and may not."""

import json
import uuid

import pytest

from liveshelf.client import Client
from tests.compose.stack import LOOP, Compose


def test_one_event_travels_the_whole_loop(compose: Compose) -> None:
    """Event → changed shelf → impression → click → example → a new version that answers, through public interfaces only."""
    client_id = f"compose-{uuid.uuid4().hex}"
    with Client(compose.settings.scoring_address, deadline_ms=5_000) as client:
        before = client.recommend(client_id=client_id)
        assert not before.degraded, before.degraded_reason
        event = {
            "client_id": client_id,
            "name": "view_item",
            "event_id": uuid.uuid4().hex,
            "items": [{"item_id": before.items[-1].item_id}],
        }
        assert compose.post(event).status_code == 202
        after = compose.until(
            lambda: (s := client.recommend(client_id=client_id)).features_offset > before.features_offset and s,
            "the event is in the shelf",
        )
        assert [(i.item_id, i.score) for i in after.items] != [(i.item_id, i.score) for i in before.items]
        click = {
            "client_id": client_id,
            "name": "select_item",
            "request_id": after.request_id,
            "items": [{"item_id": after.items[3].item_id}],
        }
        assert compose.post(click).status_code == 202
        live = compose.model()
        step = compose.until(lambda: (s := compose.step())["consumed"] and s, "examples reach the trainer")
        if step["outcome"] == "promoted":
            compose.until(lambda: compose.model() == step["version"], "the new version answers")
            assert client.recommend(client_id=client_id).model_version > live


@pytest.mark.parametrize("service", LOOP)
def test_a_container_is_shut(compose: Compose, service: str) -> None:
    """Not root, no capability, nothing gained by exec; read-only but for Kafka, whose image writes its configuration at start."""
    config = compose.inspect(service)
    assert config["Config"]["User"] not in ("", "0", "root")
    assert config["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in config["HostConfig"]["SecurityOpt"]
    assert config["HostConfig"]["ReadonlyRootfs"] or service == "kafka"
    assert config["HostConfig"]["Memory"] > 0
    assert config["HostConfig"]["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}
    for line in config["Config"]["Env"]:
        name, _, value = line.partition("=")
        assert not value or not any(word in name for word in ("PASSWORD", "TOKEN", "SECRET")), name


def test_ports_are_on_loopback(compose: Compose) -> None:
    """Every port that the engine listens on for a container is on 127.0.0.1."""
    listening = []
    for service in LOOP:
        for published in compose.inspect(service)["NetworkSettings"]["Ports"].values():
            for port in published or []:
                listening.append(f"{port['HostIp']}:{port['HostPort']} {service}")
                assert port["HostIp"] == "127.0.0.1", (service, port)
    print("\nlistening: " + ", ".join(sorted(listening)))


def test_metrics_are_served_by_every_role(compose: Compose) -> None:
    for port in (18080, 18081, 18082, 18083, 18091, 18501):
        path = "monitoring/prometheus/metrics" if port == 18501 else "metrics"
        assert "# TYPE" in compose.get(f"{port}/{path}").text, port


def test_no_secret_is_in_an_image(compose: Compose) -> None:
    for service in ("collector", "agents", "scoring", "trainer"):
        history = compose.docker("history", "--no-trunc", "--format", "{{json .}}", compose.inspect(service)["Image"]).stdout
        for line in history.splitlines():
            assert "PASSWORD" not in json.loads(line)["CreatedBy"].upper()
