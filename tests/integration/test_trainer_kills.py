"""The trainer under kill -9, short; `make chaos-trainer` is the long run, and shows with `OPTIONS="--break offsets_first"` that it can go red."""

import json
import os
import subprocess
import sys

from tests.chaos.trainer import schedule

KILLS, STEPS = 3, 3
TIMEOUT_S = 500


def test_three_kills_leave_every_weight_as_it_would_have_been() -> None:
    """Weights, optimiser state, vocabulary, samples, the served version and the releases told: bit for bit those of an undisturbed run."""
    options = ["--kills", str(KILLS), "--steps", str(STEPS), "--seed", "1", "--json"]
    command = [sys.executable, "-m", "tests.chaos.trainer", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ, check=False)
    assert done.stdout.strip(), done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["different"], report["kills_missed"], done.returncode) == (0, 0, 0), report["differences"]
    assert report["kills"] == KILLS
    assert report["arrays"] > 100
    assert report["promoted"] > 1


def test_a_seed_names_one_schedule_in_the_order_of_the_steps() -> None:
    measured = [(30, 2.0), (40, 3.0), (50, 4.0)]
    found = schedule(1, 20, measured)
    assert found == schedule(1, 20, measured) != schedule(2, 20, measured)
    assert [kill.step for kill in found] == sorted(kill.step for kill in found)
    assert sum(kill.operation > 0 for kill in found) == 10
    for kill in found:
        operations, seconds = measured[kill.step]
        assert 1 <= kill.operation <= operations or 0 <= kill.after_s < seconds
