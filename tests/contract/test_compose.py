"""docker-compose.yml keeps to what the settings say. (Whether it comes up needs an engine, and is tested elsewhere.)"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from liveshelf.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if str(service["image"]).startswith("liveshelf/")}


def test_every_published_port_is_on_loopback_and_one_of_the_settings() -> None:
    defaults = Settings()
    known = {getattr(defaults, name) for name in Settings.__struct_fields__ if name.endswith("_port")}
    for name, service in SERVICES.items():
        for published in service["ports"]:
            host, outside, _ = published.split(":")
            assert host == "127.0.0.1", name
            assert int(outside) in known, name


@pytest.mark.parametrize("name", OURS)
def test_settings_of_each_role_load(name: str) -> None:
    """An unknown name in the environment would be ignored silently, so names are compared too."""
    environment = OURS[name]["environment"]
    assert {key.removeprefix(PREFIX).lower() for key in environment} <= set(Settings.__struct_fields__)
    settings = load_settings(environment)
    assert settings.model_path == Path("/data/models/shelf")
    addresses = (settings.kafka_address, settings.store_address, settings.model_server_address)
    assert all(address.split(":")[0] in SERVICES for address in addresses)


@pytest.mark.parametrize("name", OURS)
def test_each_role_is_a_module_and_has_its_image(name: str) -> None:
    service = OURS[name]
    module = service["command"][-1]
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    target = str(service["image"]).removeprefix("liveshelf/")
    assert f"AS {target}\n" in (ROOT / "deploy/Dockerfile").read_text()
    assert service["user"] == "10001:10001"


def test_stock_images_are_pinned_and_everything_is_watched() -> None:
    for name, service in SERVICES.items():
        assert name in OURS or service["image"].rpartition(":")[2][0].isdigit(), name
        assert service["healthcheck"]["test"], name
        assert service["init"] is True, name
