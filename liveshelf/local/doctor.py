"""What can be wrong with this machine, each with what to do about it. Nothing is changed, started or fetched."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil

from liveshelf.errors import LiveshelfError
from liveshelf.local import kafka, ports, valkey
from liveshelf.local.parts import Part, parts
from liveshelf.local.state import running_state
from liveshelf.settings import PREFIX, Settings

OK, WARNING, FAILED = "ok", "warning", "failed"

GB = 1e9
# Jars 45 MB, TensorFlow's checkpoints and ten model versions under 100 MB; the rest is for the log: about 200 bytes an event, compressed.
DISK_FAILED_GB, DISK_WARNING_GB = 0.5, 5.0
# Kafka 0.3, and TensorFlow three times (model server, trainer, their models): 0.6 each.
MEMORY_WARNING_GB = 3.0
RUN_TIMEOUT_S = 20


class Check(msgspec.Struct, frozen=True):
    """One thing looked at. `todo` is empty when there is nothing to do."""

    name: str
    result: str
    found: str
    todo: str = ""


async def examine(settings: Settings) -> list[Check]:
    """Every check, the cheap ones first."""
    all_parts = parts(settings)
    checks = [python_version(sys.version_info[:3]), *_data_dir(settings), _memory()]
    if not settings.kafka:
        checks += [_answer("java", lambda: _first_words_of([str(kafka.java()), "-version"])), _jars(settings)]
    if not settings.store:
        checks.append(_answer("valkey", lambda: _first_words_of([str(valkey.valkey_binary()), "--version"])))
    checks += _ports(settings, all_parts)
    for part in all_parts:
        if part.command is None or running_state(settings):
            checks.append(await _health(part))
    return checks


def python_version(version: tuple[int, ...]) -> Check:
    found = ".".join(map(str, version))
    if (3, 11) <= version < (3, 14):
        return Check("python", OK, found)
    return Check("python", FAILED, found, "Use Python 3.11, 3.12 or 3.13: TensorFlow has no wheels for others.")


def _answer(name: str, ask: Callable[[], str]) -> Check:
    """Whatever `ask` raises on purpose already says what to do."""
    try:
        return Check(name, OK, ask())
    except LiveshelfError as error:
        return Check(name, FAILED, "missing", str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return Check(
            name, FAILED, str(error), "Its wheel is damaged or for another platform: reinstall with pip install --force-reinstall."
        )


def _first_words_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=True)
    return " ".join((done.stdout or done.stderr).split()[:3])


def _jars(settings: Settings) -> Check:
    folder, locked = kafka.jars_dir(settings), kafka.locked_jars()
    bad = kafka.unverified_jars(settings)
    if not bad:
        return Check("kafka jars", OK, f"{len(locked)} in {folder}, every hash as locked")
    there = [name for name in bad if (folder / name).exists()]
    if there:
        return Check(
            "kafka jars", WARNING, f"another hash: {', '.join(there)}", "`liveshelf up` fetches them again; it needs the network."
        )
    return Check(
        "kafka jars",
        WARNING,
        f"{len(bad)} of {len(locked)} not yet in {folder}",
        "`liveshelf up` fetches them (45 MB); it needs the network.",
    )


def _data_dir(settings: Settings) -> Iterator[Check]:
    for name, variable, path in (("data dir", "DATA_DIR", settings.data_path), ("cache dir", "CACHE_DIR", settings.cache_path)):
        # What does not exist yet would be made: then its nearest parent must be writable.
        existing = next(place for place in (path, *path.parents) if place.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                yield Check(name, OK, str(path))
        except OSError as error:
            yield Check(name, FAILED, f"{path}: {error.strerror}", f"Set {PREFIX}{variable} to a directory that can be written.")
        if name == "data dir":
            yield disk(shutil.disk_usage(existing).free / GB, existing)


def disk(free_gb: float, place: Path) -> Check:
    found = f"{free_gb:.1f} GB free at {place}"
    if free_gb >= DISK_WARNING_GB:
        return Check("disk", OK, found)
    result = WARNING if free_gb >= DISK_FAILED_GB else FAILED
    return Check("disk", result, found, "Free some, set LIVESHELF_DATA_DIR elsewhere, or lower LIVESHELF_CLICKSTREAM_RETENTION_H.")


def _memory() -> Check:
    free_gb = psutil.virtual_memory().available / GB
    found = f"{free_gb:.1f} GB available"
    if free_gb >= MEMORY_WARNING_GB:
        return Check("memory", OK, found)
    return Check(
        "memory",
        WARNING,
        found,
        f"All parts together take about {MEMORY_WARNING_GB:.0f} GB: close something, or move a part elsewhere.",
    )


def _ports(settings: Settings, all_parts: list[Part]) -> Iterator[Check]:
    state = running_state(settings)
    ours = {part.name for part in state.parts if part.pid} if state else set()
    for part in all_parts:
        for setting, port in part.ports.items():
            name = f"port {port} ({part.name})"
            problem = ports.port_problem(settings.host, port)
            if not problem:
                yield Check(name, OK, "free")
            elif part.name in ours:
                yield Check(name, OK, "ours")
            else:
                by = f" by {holder}" if (holder := ports.holder(port)) else ""
                yield Check(name, FAILED, problem + by, f"Stop that, or set {PREFIX}{setting.upper()} to a free port.")


async def _health(part: Part) -> Check:
    try:
        await part.health()
    except LiveshelfError as error:
        todo = (
            f"See `liveshelf logs {part.name}`."
            if part.command
            else f"The address is from your settings: {part.address}. Is it right, and is it up?"
        )
        return Check(part.name, FAILED, str(error), todo)
    return Check(part.name, OK, f"answers at {part.address}")


def worst(checks: list[Check]) -> str:
    return max((check.result for check in checks), key=[OK, WARNING, FAILED].index)
