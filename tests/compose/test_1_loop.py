"""The suite of any stack on docker-compose.yml, and what its containers may and may not."""

import json
import os
from ipaddress import ip_address

import psutil
import pytest

from tests.compose.stack import LOOP, VARIABLES, Compose, pytest_of

IMAGE_MB_MAX = 250


def test_the_suite_of_any_stack_passes(compose: Compose) -> None:
    """tests/e2e/test_stack.py, as anybody runs it against a stack of his: given by addresses, through public interfaces only."""
    settings = compose.settings
    addresses = {
        "LIVESHELF_STACK": "addresses",
        "LIVESHELF_COLLECTOR": settings.collector_url.removeprefix("http://"),
        "LIVESHELF_SCORING": settings.scoring_address,
        "LIVESHELF_FEEDBACK_WINDOW_S": VARIABLES["LIVESHELF_FEEDBACK_WINDOW_S"],
    }
    print(pytest_of("tests/e2e/test_stack.py", addresses))


def test_the_files_are_valid_with_every_profile(compose: Compose) -> None:
    for variables in ({}, {"COMPOSE_FILE": "docker-compose.yml:deploy/secure/compose.yml"}):
        services = Compose(**variables).run("--profile", "*", "config", "--services").stdout.split()
        assert {*LOOP, "model-server-gpu", "load", "prometheus", "grafana"} <= set(services)
        assert ("access" in services) == bool(variables)


@pytest.mark.parametrize("service", LOOP)
def test_a_container_is_shut(compose: Compose, service: str) -> None:
    """Not root, no capability, nothing gained by exec, read-only."""
    config = compose.inspect(service)
    assert config["Config"]["User"] not in ("", "0", "root")
    assert config["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in config["HostConfig"]["SecurityOpt"]
    assert config["HostConfig"]["ReadonlyRootfs"]
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
    if "LIVESHELF_NAMESPACE" in os.environ:  # nobody else's sockets are here, so all of them are asked for
        sockets = {c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        print("sockets: " + ", ".join(sorted(f"{address.ip}:{address.port}" for address in sockets)))
        assert len(sockets) >= len(listening)
        assert not [address for address in sockets if not ip_address(address.ip).is_loopback]


def test_metrics_are_served_by_every_role(compose: Compose) -> None:
    for port in (18080, 18081, 18082, 18083, 18091, 18501):
        path = "monitoring/prometheus/metrics" if port == 18501 else "metrics"
        assert "# TYPE" in compose.get(f"{port}/{path}").text, port


def test_images_without_tensorflow_are_small(compose: Compose) -> None:
    sizes = {}
    for service in ("collector", "agents", "joiner", "scoring"):
        image = compose.inspect(service)["Image"]
        sizes[service] = int(compose.docker("image", "inspect", "--format", "{{.Size}}", image).stdout) / 1e6
    print("\n" + ", ".join(f"{service} {mb:.0f} MB" for service, mb in sizes.items()))
    assert max(sizes.values()) < IMAGE_MB_MAX


def test_no_secret_is_in_an_image(compose: Compose) -> None:
    for service in ("collector", "agents", "scoring", "trainer"):
        history = compose.docker("history", "--no-trunc", "--format", "{{json .}}", compose.inspect(service)["Image"]).stdout
        for line in history.splitlines():
            assert "PASSWORD" not in json.loads(line)["CreatedBy"].upper()
