"""docker-compose.yml and deploy/Dockerfile keep to what the settings say. (That it comes up is shown by tests/compose.)"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from features.absent import PACKAGES
from liveshelf.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}")
TEXT = (ROOT / "docker-compose.yml").read_text()
SECURE = (ROOT / "deploy/secure/compose.yml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(VARIABLE.sub(lambda found: found["default"], TEXT))["services"]
OURS = {name: service for name, service in SERVICES.items() if str(service["image"]).startswith("liveshelf/")}
LOOP = {name: service for name, service in SERVICES.items() if "profiles" not in service}
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def test_every_published_port_is_on_loopback_and_one_of_the_settings() -> None:
    defaults = Settings()
    known = {getattr(defaults, name) for name in Settings.__struct_fields__ if name.endswith("_port")}
    for name, service in SERVICES.items():
        for published in service.get("ports", []):
            host, outside, _ = published.split(":")
            assert host == "127.0.0.1", name
            assert int(outside) in known or name not in LOOP, name


def test_the_sample_environment_explains_every_variable_with_its_default() -> None:
    """.env.example as it stands changes nothing, and each of its variables has a comment above it."""
    defaults = {found["name"]: found["default"] for text in (TEXT, SECURE) for found in VARIABLE.finditer(text)}
    blocks = (ROOT / ".env.example").read_text().split("\n\n")
    explained = {}
    for block in blocks:
        for line in block.splitlines():
            if line and not line.startswith("#"):
                assert block.startswith("#"), line
                name, _, value = line.partition("=")
                explained[name] = value
    assert explained == defaults


@pytest.mark.parametrize("name", OURS)
def test_settings_of_each_role_load(name: str) -> None:
    """An unknown name in the environment would be ignored silently, so names are compared too."""
    environment = OURS[name]["environment"]
    assert {key.removeprefix(PREFIX).lower() for key in environment} <= set(Settings.__struct_fields__)
    settings = load_settings(environment)
    assert settings.model_path == Path("/data/models/shelf")
    addresses = (settings.kafka_address, settings.store_address, settings.model_server_address, settings.collector)
    assert all(address.split(":")[0] in SERVICES for address in addresses)


def test_defaults_are_those_of_the_settings() -> None:
    """What compose passes on is what a role would have done without it."""
    differs = {"data_dir", "host", "kafka", "store", "model_server", "model_server_base_path", "collector"}
    settings, defaults = load_settings(OURS["scoring"]["environment"]), Settings()
    for name in Settings.__struct_fields__:
        assert name in differs or getattr(settings, name) == getattr(defaults, name), name


@pytest.mark.parametrize("name", OURS)
def test_each_role_is_a_module_and_has_its_image(name: str) -> None:
    service = OURS[name]
    if service["command"][0] == "python":
        module = service["command"][-1]
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    target = str(service["image"]).removeprefix("liveshelf/").partition(":")[0]
    assert f"AS {target}\n" in DOCKERFILE
    assert service["user"] == "10001:10001"


def test_images_are_pinned_and_everything_is_watched_and_shut() -> None:
    for name, service in SERVICES.items():
        assert service["image"].rpartition(":")[2].lstrip("v")[0].isdigit(), name
        assert service["healthcheck"]["test"], name  # `up --wait` fails for a service without one
        assert service["init"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name
        limits = service["deploy"]["resources"]["limits"]
        assert limits["memory"], name
        assert limits["pids"], name


def test_the_secure_stack_holds_every_role_to_a_folder_of_its_own() -> None:
    """Each of ours reads its settings, passwords among them, from files; no value in an environment is one."""
    services = yaml.safe_load(VARIABLE.sub(lambda found: found["default"], SECURE))["services"]
    for name in (*OURS, "access", "kafka", "store", "store-exporter"):
        folder = "shop" if name == "load" else name
        assert services[name]["volumes"] == [f"./.secrets/{folder}:/run/secrets:ro"], name
        for variable, value in services[name].get("environment", {}).items():
            assert "PASSWORD" not in variable or str(value).startswith("/run/secrets/"), (name, variable)
    assert set(services) - {"access"} <= set(SERVICES)


def test_nothing_needs_a_newer_engine_than_20_10() -> None:
    """What that engine and its builder refuse, in either file."""
    for word in ("start_interval", "configs:", "required: false", "develop:"):
        assert word not in TEXT, word
    for word in ("# syntax=", "<<EOF", "COPY --link", "ADD --link", "ADD http"):
        assert word not in DOCKERFILE, word


def test_the_dockerfile_is_as_a_linter_wants_it() -> None:
    """What every image is made of ends as a number that is not root; bases carry a version; nothing is fetched that the lock does not name."""
    stages = dict(re.findall(r"(?ms)^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE))
    scratch = {"streams", "online", "learning"}
    assert {name for name, stage in stages.items() if "\nUSER 10001:10001\n" in stage} == scratch
    assert set(re.findall(r"(?m)^FROM scratch AS (\S+)$", DOCKERFILE)) == scratch
    assert set(re.findall(r"(?m)^FROM (?:online|learning) AS (\S+)$", DOCKERFILE)) == {
        "agents",
        "serving",
        "trainer",
        "model-server",
    }
    assert DOCKERFILE.count("USER ") == len(scratch)
    assert ":latest" not in DOCKERFILE
    assert "curl" not in DOCKERFILE
    assert DOCKERFILE.count("pip install") == DOCKERFILE.count("--mount=type=cache,target=/var/cache/pip pip install")


def test_images_leave_out_what_placeholders_stand_in_for() -> None:
    (taken_off,) = re.findall(r"(?s)site-packages && rm -rf (.*?)\n(?!  )", DOCKERFILE)
    assert {word for word in taken_off.replace("\\\n", "").split() if not word.endswith(("-*", ".libs"))} == PACKAGES


def test_the_engine_of_the_compose_tests_ends_only_what_it_started(tmp_path: Path) -> None:
    """Its pid files may be old: the number belongs to another process by now, which goes on."""
    state = tmp_path / "engine"
    state.mkdir()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        for name in ("dockerd.pid", "slirp.pid"):
            (state / name).write_text(str(stranger.pid))
        subprocess.run(["bash", str(ROOT / "tests/compose/engine.sh"), "stop", str(state)], check=True, timeout=30)
        assert stranger.poll() is None
        assert not state.exists()
        stranger.kill()


def test_without_an_engine_the_compose_tests_fail_with_the_reason(tmp_path: Path) -> None:
    """Where nothing that makes one is installed or can be: exit code 3, what is missing, and how to go on without."""
    for tool in ("bash", "dirname", "id", "mkdir", "uname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    command = [str(tmp_path / "bash"), str(ROOT / "tests/compose/engine.sh"), "start", str(tmp_path / "engine")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert "no Docker engine can be had" in done.stderr
    assert "Set LIVESHELF_SKIP_COMPOSE=1 to go without the compose tests" in done.stderr


def test_the_compose_tests_are_left_out_on_purpose() -> None:
    command = ["bash", str(ROOT / "tests/compose/run.sh")]
    done = subprocess.run(command, env=os.environ | {"LIVESHELF_SKIP_COMPOSE": "1"}, capture_output=True, text=True, timeout=30)
    assert (done.returncode, "skipped, because LIVESHELF_SKIP_COMPOSE=1" in done.stdout) == (0, True)
