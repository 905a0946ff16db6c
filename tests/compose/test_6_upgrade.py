"""A stack with data goes on under the next version of our images, and back: nothing is lost, and new features are folded from the log."""

import os
import subprocess
from pathlib import Path

from streams.records import Event, decode
from streams.topics import CLICKSTREAM
from tests.compose.stack import ROOT, Compose
from tests.compose.test_3_keeping import state
from tests.compose.traffic import Traffic
from tests.conftest import read_all

ROLES = ("streams", "agents", "serving", "trainer")


def test_the_next_version_takes_the_data_over_and_the_old_one_takes_it_back(compose: Compose, tmp_path: Path) -> None:
    """The next version declares other features: its agents fold the whole log into rows of their own, beside the old ones."""
    shipped = (ROOT / "features/default.yml").read_text()
    (tmp_path / "default.yml").write_text(shipped.replace("half_lives: [1d, 14d]", "half_lives: [1d, 7d]"))
    for role in ROLES:
        _build(tmp_path, role)
    before = state(compose)
    old = compose.liveshelf("agents", "features", "list")
    following = Compose(LIVESHELF_VERSION="0.2.0")
    with Traffic(compose.settings) as traffic:
        took_s = following.up()
    after = state(following)
    print(f"\nupgraded in {took_s:.1f} s, {len(traffic.accepted)} events accepted meanwhile: {before} -> {after}")
    for service in ("collector", "agents", "joiner", "scoring", "trainer"):
        assert following.inspect(service)["Config"]["Image"].endswith(":0.2.0"), service
    assert following.liveshelf("agents", "features", "list") != old
    assert (after["model"], after["events"] >= before["events"] + len(traffic.accepted)) == (before["model"], True)
    logged = {decode(Event, value).event_id for _, _, _, value in read_all(compose.settings, CLICKSTREAM)}
    assert set(traffic.accepted) <= logged
    step = following.step()
    print(f"a step on the new features: {step['outcome']} {step.get('reason', '')}")
    back_s = compose.up()
    again = state(compose)
    print(f"and back in {back_s:.1f} s: {again}")
    assert again["events"] >= after["events"]


def _build(context: Path, role: str) -> None:
    file = str(ROOT / "tests/compose/next.Dockerfile")
    words = [
        "docker",
        "build",
        "--quiet",
        "--build-arg",
        f"ROLE={role}",
        "--tag",
        f"liveshelf/{role}:0.2.0",
        "--file",
        file,
        str(context),
    ]
    done = subprocess.run(words, env=os.environ | {"DOCKER_BUILDKIT": "0"}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
