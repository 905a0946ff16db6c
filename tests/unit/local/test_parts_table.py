"""The table of parts follows the settings: what is ours is started, what is yours is only asked."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from liveshelf.errors import ConflictError
from liveshelf.local import ports
from liveshelf.local.parts import parts, role_environment
from liveshelf.settings import Settings, load_settings
from tests.conftest import local_settings


def test_every_port_setting_belongs_to_one_part() -> None:
    """A port that no part declares would not be checked before start."""
    declared = [setting for part in parts(Settings()) for setting in part.ports]
    assert sorted(declared) == sorted(name for name in Settings.__struct_fields__ if name.endswith("_port"))


def test_parts_come_after_parts_listed_before_them() -> None:
    seen: set[str] = set()
    for part in parts(Settings()):
        assert set(part.after) <= seen, part.name
        seen.add(part.name)


@pytest.mark.parametrize(("setting", "name"), [("kafka", "kafka"), ("store", "store"), ("model_server", "model-server")])
def test_a_part_of_yours_is_not_started(setting: str, name: str) -> None:
    settings = msgspec.structs.replace(Settings(), **{setting: "part.example:1234"})
    by_name = {part.name: part for part in parts(settings)}
    assert (by_name[name].command, by_name[name].ports, by_name[name].address) == (None, {}, "part.example:1234")
    assert all(part.command for part in by_name.values() if part.name != name)


def test_the_password_of_the_store_is_not_shown() -> None:
    store = next(part for part in parts(Settings(store="part.example:6379,password=hush")) if part.name == "store")
    assert store.address == "part.example:6379"


def test_roles_read_the_same_settings(tmp_path: Path) -> None:
    """Whatever the environment of this process says, a role gets the settings object it was started with; and nothing else is lost."""
    settings = local_settings(tmp_path, seed=99, store="part.example:1,password=a=b")
    environment = role_environment(settings, {"LIVESHELF_SEED": "1", "LIVESHELF_SETTINGS": "/gone.toml", "HOME": "/home/me"})
    assert load_settings(environment) == msgspec.structs.replace(settings, cache_dir=str(settings.cache_path))
    assert environment["HOME"] == "/home/me"


def test_roles_import_this_code_wherever_they_are_started(tmp_path: Path) -> None:
    """A folder called `streams` where the user stands is not imported in place of ours."""
    (tmp_path / "streams").mkdir()
    (tmp_path / "streams" / "__init__.py").touch()
    environment = role_environment(local_settings(tmp_path), os.environ)
    command = [sys.executable, "-P", "-c", "import streams.topics; print(streams.topics.CATALOG)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "catalog\n", done.stderr


def test_two_settings_with_one_port(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)
    clash = msgspec.structs.replace(settings, trainer_port=settings.collector_port)
    with pytest.raises(
        ConflictError, match=f"LIVESHELF_TRAINER_PORT and LIVESHELF_COLLECTOR_PORT both say {settings.collector_port}"
    ):
        ports.require_free(parts(clash), clash.host)
