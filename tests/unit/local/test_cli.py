"""The command line: what help costs and lists, exit codes, and messages fit for people and scripts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from liveshelf.cli.features import VERBS as FEATURE_VERBS
from liveshelf.cli.main import VERBS
from tests.conftest import free_port

ROOT = Path(__file__).parents[3]


def liveshelf(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("LIVESHELF_") or name == "LIVESHELF_CACHE_DIR"
    }
    environment |= {f"LIVESHELF_{name.upper()}": str(value) for name, value in settings.items()}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "liveshelf.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def present_verbs() -> list[str]:
    cli = ROOT / "liveshelf" / "cli"
    files = {verb: verb.replace("-", "_") for verb in VERBS}
    return [verb for verb, file in files.items() if (cli / f"{file}.py").exists() or (cli / file / "__init__.py").exists()]


def test_help_lists_every_verb_that_is_there() -> None:
    """Verbs whose file is absent are left out and break nothing."""
    done = liveshelf("--help")
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert (done.returncode, listed) == (0, present_verbs())


def test_help_is_quick() -> None:
    """0.3 s of processor time at most (0.11 s measured), because it imports none of the heavy parts."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "liveshelf.cli.main", "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"rich", "asyncio", "grpc", "numpy", "confluent_kafka", "redis", "tensorflow", "feast", "psutil"}
    before = os.times().children_user + os.times().children_system
    liveshelf("--help")
    assert os.times().children_user + os.times().children_system - before < 0.3


@pytest.mark.parametrize("verb", present_verbs())
def test_help_of_each_verb_teaches(verb: str) -> None:
    done = liveshelf(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: liveshelf {verb}" in done.stdout


@pytest.mark.parametrize("verb", FEATURE_VERBS)
def test_help_of_each_verb_of_features_teaches(verb: str) -> None:
    """Each with an example; and every verb that the group lists is there."""
    done = liveshelf("features", verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: liveshelf features {verb}" in done.stdout
    assert f"    liveshelf features {verb}" in done.stdout


def test_features_settings_are_checked_without_anything_running(tmp_path: Path) -> None:
    """A file with a mistake names its line and exits 1; a sample that is no file exits 2; a valid proposal comes from 40 events."""
    wrong, sample = tmp_path / "features.yml", tmp_path / "events.jsonl"
    wrong.write_text("features:\n  - name: recent\n    kind: last_n\n    n: many\n    events: [view_item]\n")
    done = liveshelf("features", "check", wrong, data_dir=tmp_path)
    assert (done.returncode, f"{wrong}, line 4" in done.stdout) == (1, True), done.stdout
    assert liveshelf("features", "suggest", sample, data_dir=tmp_path).returncode == 2
    micros = 1_790_000_000_000_000
    lines = [
        {"name": "view_item", "client_id": f"c{n % 7}", "timestamp_micros": micros + n * 10**9, "items": [{"item_id": f"i{n % 5}"}]}
        for n in range(40)
    ]
    sample.write_text("\n".join(map(json.dumps, lines)) + '\n{"name": "view_itm"}\n')
    assert liveshelf("features", "suggest", sample, "-o", tmp_path / "new.yml", data_dir=tmp_path).returncode == 0
    checked = liveshelf("features", "check", tmp_path / "new.yml", "--sample", sample, "--json", data_dir=tmp_path)
    result = json.loads(checked.stdout)
    assert (checked.returncode, result["faults"]) == (0, [])
    assert (result["sample"]["valid"], result["sample"]["invalid"]) == (40, {"unknown_event_name": 1})


def test_a_bad_setting_is_one_line_and_exit_2() -> None:
    done = liveshelf("status", partitions="many")
    assert done.returncode == 2
    assert "partitions" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nothing_runs(tmp_path: Path) -> None:
    """status says so and exits 3; down has nothing to do, which is no error; logs names what there is."""
    status, down, logs = (liveshelf(*words, data_dir=tmp_path) for words in (("status", "--json"), ("down",), ("logs", "kafka")))
    assert (status.returncode, json.loads(status.stdout)) == (3, None)
    assert (down.returncode, down.stdout) == (0, f"Nothing runs in {tmp_path}.\n")
    assert (logs.returncode, "no log of 'kafka'" in logs.stderr) == (4, True)


def test_a_stale_or_damaged_state_file_is_nothing_running(tmp_path: Path) -> None:
    for content in ('{"v":1,"pid":1,"started_s":1.0,"parts":[]}', '{"v":1,"pi'):
        (tmp_path / "run.json").write_text(content)
        done = liveshelf("status", "--json", data_dir=tmp_path)
        assert (done.returncode, json.loads(done.stdout)) == (3, None)


def test_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    """An address nobody answers at and a directory that cannot be made fail, each with what to do; the rest is fine."""
    (tmp_path / "file").touch()
    ports = {
        name: free_port()
        for name in ("collector_port", "agents_metrics_port", "scoring_port", "scoring_metrics_port", "trainer_port")
    }
    yours = dict.fromkeys(("kafka", "store", "model_server"), f"127.0.0.1:{free_port()}")
    done = liveshelf("doctor", "--json", data_dir=tmp_path / "file" / "data", **ports, **yours)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 3
    assert sorted(name for name, check in checks.items() if check["result"] == "failed") == [
        "data dir",
        "kafka",
        "model-server",
        "store",
    ]
    assert "LIVESHELF_DATA_DIR" in checks["data dir"]["todo"]
    assert all(check["todo"] for check in checks.values() if check["result"] == "failed")


def test_up_with_a_port_in_use_leaves_nothing(tmp_path: Path) -> None:
    """Exit 5, one line, no state file, no process; and the time it takes is that of finding out."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = time.monotonic()
        done = liveshelf(
            "up", data_dir=tmp_path, kafka_port=port, cache_dir=tmp_path / "no-jars", maven_repository="http://127.0.0.1:9"
        )
    assert done.returncode == 5, done.stderr
    assert f"port {port} of kafka is in use by" in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run.json").exists()
    assert time.monotonic() - started < 20


def test_up_without_jars_and_network(tmp_path: Path) -> None:
    ports = {
        f"{name}_port": free_port() for name in ("kafka", "store", "model_server", "model_server_metrics", "collector", "scoring")
    }
    ports |= {f"{name}_port": free_port() for name in ("agents_metrics", "scoring_metrics", "trainer")}
    done = liveshelf("up", data_dir=tmp_path, cache_dir=tmp_path / "no-jars", maven_repository="http://127.0.0.1:9", **ports)
    assert done.returncode == 3, done.stderr
    assert "LIVESHELF_MAVEN_REPOSITORY" in done.stderr
    assert not (tmp_path / "run.json").exists()
