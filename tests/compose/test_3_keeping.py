"""What is kept: over a down and an up, and over a backup that is restored into an empty stack."""

import subprocess
from pathlib import Path
from typing import Any

from streams.topics import CLICKSTREAM, topics
from tests.compose.stack import ROOT, Compose
from tests.conftest import read_all


def state(compose: Compose) -> dict[str, Any]:
    """What must not shrink (the freshness probe goes on sending): how much is in each topic, how many rows the store holds and that they are what the log says, the live model."""
    compose.until(lambda: not compose.unhealthy(), "every role is ready")

    def folded() -> Any:
        found = compose.liveshelf("agents", "features", "verify")
        return None if found["behind"] else found

    verified = compose.until(folded, "everything is folded")
    assert verified["different"] == 0
    compose.until(lambda: compose.model() > 0, "a model answers")
    counts = {topic.name: len(read_all(compose.settings, topic.name)) for topic in topics(compose.settings)[:1]}
    return {"events": counts[CLICKSTREAM], "rows": verified["rows"], "model": compose.model()}


def test_down_and_up_keeps_everything(compose: Compose) -> None:
    before = state(compose)
    compose.down(volumes=False)
    print(f"\nup again after {compose.up():.1f} s: {before}")
    after = state(compose)
    assert (after["model"], after["rows"] >= before["rows"], after["events"] >= before["events"]) == (before["model"], True, True)


def test_a_backup_restores_into_an_empty_stack(compose: Compose, tmp_path: Path) -> None:
    before = state(compose)
    _script("backup.sh", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"kafka.tar", "store.tar", "data.tar", "models.tar"}
    compose.down()
    _script("restore.sh", tmp_path)
    compose.up()
    after = state(compose)
    print(f"\nrestored: {after}, backed up: {before}")
    assert (after["model"], after["rows"] >= before["rows"], after["events"] >= before["events"]) == (before["model"], True, True)


def _script(name: str, where: Path) -> None:
    done = subprocess.run(["sh", f"deploy/{name}", str(where)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
