"""docker-compose.yml as a test drives it: up, down, faults, and the questions that a client may ask over public interfaces."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from liveshelf.settings import Settings

ROOT = Path(__file__).parents[2]
UP_TIMEOUT_S = 240
LOOP = ("kafka", "store", "model-server", "collector", "agents", "joiner", "scoring", "trainer")
HEALTH = {
    "collector": "18080/readyz",
    "agents": "18081/readyz",
    "trainer": "18082/readyz",
    "joiner": "18083/readyz",
    "scoring": "18091/readyz",
}
# For a machine that may be busy with other things: that deadlines are kept is shown elsewhere. Windows close while a test waits.
VARIABLES = {
    "LIVESHELF_FEEDBACK_WINDOW_S": "2",
    "LIVESHELF_TRAIN_INTERVAL_S": "0",
    "LIVESHELF_RECOMMEND_DEADLINE_MS": "2000",
    "LIVESHELF_STORE_TIMEOUT_MS": "500",
    "LIVESHELF_MODEL_TIMEOUT_MS": "1000",
    "LIVESHELF_FRESHNESS_PROBE_S": "5",
}
Answer = TypeVar("Answer")


def pytest_of(tests: str, environment: dict[str, str], *words: str) -> str:
    """Run other tests of ours in a process of their own, in `environment`; their summary line."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, tests],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    return f"\n{tests}: {done.stdout.strip().splitlines()[-1]}"


class Compose:
    """The stack of docker-compose.yml with `variables`, over those that every test wants."""

    def __init__(self, **variables: str) -> None:
        self.variables = VARIABLES | variables
        self.settings = Settings(kafka="127.0.0.1:19092", store="127.0.0.1:16379", model_server="127.0.0.1:18500")

    def run(self, *words: str, timeout_s: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.docker("compose", *words, timeout_s=timeout_s, check=check)

    def docker(self, *words: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker", *words], cwd=ROOT, env=os.environ | self.variables, capture_output=True, text=True, timeout=timeout_s
        )
        assert not check or done.returncode == 0, (words, done.stderr[-3000:], done.stdout[-1000:])
        return done

    def up(self, *profiles: str) -> float:
        """Seconds until every service is healthy."""
        began = time.monotonic()
        words = [word for profile in profiles for word in ("--profile", profile)]
        done = self.run(*words, "up", "--detach", "--wait", "--no-build", timeout_s=UP_TIMEOUT_S, check=False)
        if done.returncode:
            self.keep_logs()
            pytest.fail(f"docker compose up: {done.stderr[-2000:]}\n{self.run('logs', '--tail', '15').stdout[-6000:]}")
        return time.monotonic() - began

    def down(self, volumes: bool = True) -> None:
        self.run("--profile", "*", "down", "--remove-orphans", *(["--volumes"] if volumes else []))

    def keep_logs(self) -> None:
        if where := os.environ.get("LIVESHELF_COMPOSE_LOGS"):
            Path(where).write_text(self.run("logs", "--timestamps", check=False).stdout)

    def liveshelf(self, service: str, *words: str, timeout_s: float = 180) -> Any:
        """The last line, decoded, of a `liveshelf … --json` inside a service's container."""
        done = self.run("exec", "-T", service, "liveshelf", *words, "--json", timeout_s=timeout_s, check=False)
        assert done.stdout.strip(), (words, done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])

    def container(self, service: str) -> str:
        return self.run("ps", "--all", "--quiet", service).stdout.strip()

    def inspect(self, service: str) -> Any:
        return json.loads(self.docker("inspect", self.container(service)).stdout)[0]

    def kill(self, service: str) -> None:
        """As a crash does: `docker kill` would count as a stop that the operator wanted, and nothing would start it again."""
        os.kill(self.inspect(service)["State"]["Pid"], signal.SIGKILL)

    def pause(self, service: str) -> None:
        self.docker("pause", self.container(service))

    def unpause(self, service: str) -> None:
        self.docker("unpause", self.container(service))

    def disconnect(self, service: str) -> None:
        self.docker("network", "disconnect", "liveshelf_default", self.container(service))

    def connect(self, service: str) -> None:
        self.docker("network", "connect", "--alias", service, "liveshelf_default", self.container(service))

    def get(self, address: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{address}", timeout=5, trust_env=False)

    def post(self, body: Any, path: str = "/v1/events") -> httpx.Response:
        return httpx.post(self.settings.collector_url + path, json=body, timeout=15, trust_env=False)

    def step(self) -> Any:
        answer = httpx.post(f"{self.settings.trainer_url}/v1/step", timeout=300, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def model(self) -> int:
        return int(self.get("18091/healthz").json()["model"])

    def unhealthy(self) -> dict[str, str]:
        """Role → why, by its own readiness; empty when all are ready."""
        reasons = {}
        for name, address in HEALTH.items():
            try:
                answer = self.get(address)
                if answer.status_code != 200:
                    reasons[name] = answer.text[:200]
            except httpx.HTTPError as error:
                reasons[name] = str(error)
        return reasons

    def until(self, ask: Callable[[], Answer | None], what: str, timeout_s: float = 90) -> Answer:
        deadline = time.monotonic() + timeout_s
        problem: Exception | None = None
        while time.monotonic() < deadline:
            try:
                if answer := ask():
                    return answer
            except (httpx.HTTPError, OSError, ValueError) as error:
                problem = error
            time.sleep(0.1)
        pytest.fail(
            f"not within {timeout_s} s: {what} ({problem}, {self.unhealthy()})\n{self.run('logs', '--tail', '8').stdout[-5000:]}"
        )

    def seed(self) -> None:
        from liveshelf.simulator.feed import Feed
        from liveshelf.simulator.shop import Shop
        from liveshelf.simulator.traffic import seed_history

        with Feed(self.settings.collector_url) as feed:
            tally = seed_history(Shop(self.settings.seed), feed, 1.0, int(time.time() * 1000))
        assert tally.rejected == 0
        self.until(lambda: not self.unhealthy(), "every role is ready")
        first = self.step()
        assert first["outcome"] == "promoted", first
        self.until(lambda: self.model() == first["version"], "the first model answers")
