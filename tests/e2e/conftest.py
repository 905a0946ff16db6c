"""The whole loop, started as a user starts it: `liveshelf up --detach`, on free ports, in a directory of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import pytest

from liveshelf.local.parts import role_environment
from liveshelf.settings import Settings, load_settings
from tests.conftest import local_settings

UP_TIMEOUT_S = 420  # with the first download of Kafka's jars
DOWN_TIMEOUT_S = 90
Answer = TypeVar("Answer")


@dataclass
class Stack:
    settings: Settings

    def liveshelf(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the `liveshelf` command against this stack."""
        return subprocess.run(
            [sys.executable, "-m", "liveshelf.cli.main", *arguments],
            env=role_environment(self.settings, os.environ),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )

    def json(self, *arguments: str, timeout_s: float = 120) -> Any:
        done = self.liveshelf(*arguments, "--json", timeout_s=timeout_s)
        assert done.returncode == 0, (arguments, done.stderr[-2000:], done.stdout[-500:])
        return msgspec.json.decode(done.stdout.splitlines()[-1])

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.settings.collector_url + path, json=body, timeout=15, trust_env=False)

    def step(self) -> Any:
        answer = httpx.post(f"{self.settings.trainer_url}/v1/step", timeout=300, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def model(self) -> int:
        """The version that the scorer uses now; asking makes no impression."""
        url = f"http://{self.settings.host}:{self.settings.scoring_metrics_port}/healthz"
        return int(httpx.get(url, timeout=5, trust_env=False).json()["model"])

    def until(self, ask: Callable[[], Answer | None], what: str, timeout_s: float = 90) -> Answer:
        """Ask until the answer is true."""
        deadline = time.monotonic() + timeout_s
        problem: Exception | None = None
        while time.monotonic() < deadline:
            try:
                if answer := ask():
                    return answer
            except (httpx.HTTPError, OSError) as error:
                problem = error
            time.sleep(0.1)
        pytest.fail(f"not within {timeout_s} s: {what} ({problem})\n{self.logs()}")

    def logs(self) -> str:
        ends = []
        for log in sorted(Path(self.settings.data_path, "logs").glob("*.log")):
            ends.append(f"--- {log.name}\n" + log.read_text(errors="replace")[-1500:])
        return "\n".join(ends)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running Liveshelf with a seeded shop and a first model."""
    from liveshelf.simulator.feed import Feed
    from liveshelf.simulator.shop import Shop
    from liveshelf.simulator.traffic import seed_history

    # Deadlines for a machine that may be busy with other things: that they are kept is shown elsewhere.
    patient = {"recommend_deadline_ms": 5_000, "store_timeout_ms": 2_000, "model_timeout_ms": 2_000}
    settings = local_settings(tmp_path_factory.mktemp("stack"), feedback_window_s=2, train_interval_s=0, **patient)
    stack = Stack(settings)
    try:
        up = stack.liveshelf("up", "--detach", "--json", timeout_s=UP_TIMEOUT_S)
        assert up.returncode == 0, up.stderr[-3000:] + stack.logs()
        with Feed(settings.collector_url) as feed:
            tally = seed_history(Shop(settings.seed), feed, 2.0, int(time.time() * 1000))
        assert tally.rejected == 0
        first = stack.step()
        assert first["outcome"] == "promoted", first
        stack.until(lambda: stack.model() == first["version"], "the first model answers")
        yield stack
    finally:
        down = stack.liveshelf("down", timeout_s=DOWN_TIMEOUT_S)
        assert down.returncode == 0, down.stderr


@pytest.fixture(scope="session")
def any_stack(request: pytest.FixtureRequest) -> Stack:
    """The stack that LIVESHELF_STACK names; see test_stack.py."""
    kind = os.environ.get("LIVESHELF_STACK", "embedded")
    if kind == "embedded":
        return request.getfixturevalue("stack")  # type: ignore[no-any-return]
    assert kind == "addresses", f"LIVESHELF_STACK={kind}: embedded or addresses"
    running = Stack(load_settings())
    assert running.model() > 0, "the stack at these addresses has no model yet: send it events, then `liveshelf train`"
    return running
