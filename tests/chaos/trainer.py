"""`python -m tests.chaos.trainer --kills 20 --seed 1`: kill -9 of the trainer while it learns a log, then every weight compared with a run
that nobody disturbed. Exit 0 when all are equal, bit for bit, 1 when any is not, 3 when the trainer did not come back in time.

Half of the kills fall just before a file operation, where a crash can leave half a state behind; half fall at any time of a step. Both are
drawn from the seed and from what the undisturbed run measured.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console

from liveshelf.local.parts import role_environment
from liveshelf.local.process import OWN_SESSION, dying_with_parent
from liveshelf.settings import Settings
from streams.records import Release, encode
from streams.topics import CATALOG, CLICKSTREAM, MODEL_RELEASES, PARTITIONER, TRAINING_EXAMPLES, kafka_config
from tests.chaos.trainer_process import MODES, Kill, Orders
from tests.conftest import QUICK_JVM, broker, free_port
from tests.planted_shop import FEATURES, PlantedShop
from trainer import checkpoint, directory
from trainer.gate import MEASURED
from trainer.log import Offsets, key

EVENTS, STEPS, STEP_EXAMPLES = 2_000, 12, 240  # more steps than that, since shoppers spread unevenly over partitions
ITEMS, ITEMS_MAX = 1_400, 1_150
"""More items than the table holds at first, so that it grows on the way, and more than it may hold, so that rows change hands."""
EMBEDDING = 48
REPEATED = 40  # examples that the join delivers again, somewhere later
DONE_S, START_S = 240.0, 60.0  # a run may take this long, and this much more a kill: TensorFlow is loaded anew each time
AFTER_SHARE_MAX = 0.95  # of a step's time: later, and the timer would fire in the next one
SHOWN_MAX = 10


class Report(msgspec.Struct, kw_only=True):
    """The last line of a run, as JSON."""

    seed: int
    kills: int
    kills_missed: int
    """Ordered, and not died of, because the log had been learnt before. Counted as a fault."""
    at_file_operations: int
    steps: int
    examples: int
    promoted: int
    refused: int
    capacity: int
    """Rows of the item table at the end."""
    items_expired: int
    """That lost their row."""
    arrays: int
    """Compared: weights, optimiser state, vocabulary, frequencies, samples, and what the last served version holds."""
    different: int
    seconds: float
    differences: list[str]

    @property
    def clean(self) -> bool:
        return not (self.different or self.kills_missed)


class NotDoneError(Exception):
    """The trainer did not reach the end of the log in time; the message ends with its log."""


def run(home: Path, seed: int, kills: int, steps: int, broken: str, console: Console) -> Report:
    """Raises NotDoneError."""
    started = time.monotonic()
    with broker(home) as kafka:
        shop = PlantedShop(seed, items=ITEMS, categories=ITEMS // 10)
        examples = _write_log(kafka, shop, steps)
        ends = _ends(kafka)
        settings = msgspec.structs.replace(
            kafka, train_interval_s=1, train_examples_max=STEP_EXAMPLES, train_items_max=ITEMS_MAX, trainer_port=free_port()
        )
        calm = msgspec.structs.replace(settings, data_dir=str(home / "calm"), model_name="calm")
        hit = msgspec.structs.replace(settings, data_dir=str(home / "hit"), model_name="hit")
        measured = _measured(calm, "", ends)
        console.print(f"undisturbed: {len(measured)} steps in {sum(s for _, s in measured):.1f} s")
        if broken:  # it does other things in its steps, so its own moments are hit
            measured = _measured(
                msgspec.structs.replace(settings, data_dir=str(home / "broken"), model_name="broken"), broken, ends
            )
        plan = schedule(seed, kills, measured, timed=not broken)
        missed = 0
        for n, kill in enumerate(plan):
            died = _until_done(hit, Orders(kill=kill, broken=broken), ends, DONE_S + START_S)
            missed += not died
            console.print(f"{n + 1:3} {msgspec.json.encode(kill).decode()}{'' if died else ' missed'}", highlight=False)
        if not _until_done(hit, Orders(broken=broken), ends, DONE_S + START_S):
            console.print("ran to the end of the log")
        one, two = _everything(calm), _everything(hit)
        differences = list(_differences(one, two))
        outcomes = Counter(release.outcome for release in _releases(calm))
        state = _latest(calm).state
        return Report(
            seed=seed,
            kills=len(plan) - missed,
            kills_missed=missed,
            at_file_operations=sum(kill.operation > 0 for kill in plan),
            steps=state.steps,
            examples=examples,
            promoted=outcomes["promoted"],
            refused=outcomes["refused"],
            capacity=max(len(value) for name, value in one.items() if name.endswith("item/embeddings")),
            items_expired=int(sum(release.metrics.get("expired_items", 0) for release in _releases(calm))),
            arrays=len(one),
            different=len(differences),
            seconds=round(time.monotonic() - started, 1),
            differences=differences[:SHOWN_MAX],
        )


def _measured(settings: Settings, broken: str, ends: Offsets) -> list[tuple[int, float]]:
    """A run that nobody disturbs; each step's (file operations, seconds)."""
    record = settings.data_path / "record.jsonl"
    _until_done(settings, Orders(record=str(record), broken=broken), ends, DONE_S)
    return [msgspec.json.decode(line, type=tuple[int, float]) for line in record.read_text().splitlines()]


def schedule(seed: int, kills: int, measured: list[tuple[int, float]], timed: bool = True) -> list[Kill]:
    """`kills` moments in the order of the steps, from each step's (file operations, seconds); every other one `timed`.

    A trainer that is broken on purpose is so between two file operations, some hundredths of a second apart: there none is timed.
    """
    rng = random.Random(seed)
    # None is aimed at the last two: a kill after a step's checkpoint leaves the next one aimed at that step nothing but the steps that follow.
    steps = sorted(rng.randrange(max(1, len(measured) - 2)) for _ in range(kills))
    found = []
    for n, step in enumerate(steps):
        operations, seconds = measured[step]
        if n % 2 == 0 or not timed:
            found.append(Kill(step=step, operation=rng.randint(1, operations)))
        else:
            found.append(Kill(step=step, after_s=round(rng.random() * AFTER_SHARE_MAX * seconds, 3)))
    return found


def _write_log(settings: Settings, shop: PlantedShop, steps: int) -> int:
    """Events, catalog and examples, with repeats, bytes that are no record, and one step's worth of wrong labels, since a refused step must be as
    repeatable as a promoted one; the number of examples written."""
    rng = random.Random(0)
    catalog = [msgspec.structs.replace(item, embedding=tuple(rng.gauss(0, 1) for _ in range(EMBEDDING))) for item in shop.catalog()]
    _produce(settings, CATALOG, catalog, "item_id")
    _produce(settings, CLICKSTREAM, shop.events(EVENTS), "shopper")
    count = 0
    for step in range(steps):
        examples = shop.examples(STEP_EXAMPLES, f"step{step}", poisoned=step == steps // 2)
        _produce(settings, TRAINING_EXAMPLES, [*examples, b"\xff", *examples[:REPEATED]], "shopper")
        count += len(examples)
    return count


def _produce(settings: Settings, topic: str, records: Iterable[Any], field: str) -> None:
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER})
    for record in records:
        raw = isinstance(record, bytes)
        producer.produce(topic, record if raw else encode(record), key=b"nobody" if raw else getattr(record, field).encode())
    assert producer.flush(30) == 0


def _ends(settings: Settings) -> Offsets:
    consumer = Consumer(kafka_config(settings) | {"group.id": "chaos"})
    try:
        at = {p: TopicPartition(TRAINING_EXAMPLES, p) for p in range(settings.partitions)}
        return {key(TRAINING_EXAMPLES, p): consumer.get_watermark_offsets(where, timeout=10)[1] for p, where in at.items()}
    finally:
        consumer.close()


def _until_done(settings: Settings, orders: Orders, ends: Offsets, deadline_s: float) -> bool:
    """Run the trainer until it has learnt the log up to `ends` and told of it, or until it dies as ordered; whether it died."""
    command = [sys.executable, "-P", "-m", "tests.chaos.trainer_process", msgspec.json.encode(orders).decode()]
    settings.data_path.mkdir(parents=True, exist_ok=True)
    log = settings.data_path / "trainer.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            dying_with_parent(command),
            stdout=output,
            stderr=output,
            env=role_environment(settings, os.environ) | QUICK_JVM,
            **OWN_SESSION,
        )
    deadline = time.monotonic() + deadline_s
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise NotDoneError(f"not done in {deadline_s:.0f} s; its log ends:\n{log.read_text(errors='replace')[-3000:]}")
            if _told(settings, ends):
                process.send_signal(signal.SIGTERM)
                process.wait(30)
                return False
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != -signal.SIGKILL:
        raise NotDoneError(f"the trainer ended with {process.returncode}; its log ends:\n{log.read_text(errors='replace')[-3000:]}")
    return True


def _told(settings: Settings, ends: Offsets) -> bool:
    """Whether the newest checkpoint stands at the end of the log, and its release in `model-releases`."""
    try:
        found = checkpoint.load_latest(checkpoint.path_of(settings, FEATURES.version))
    except FileNotFoundError:  # dropped while we looked: there are newer ones
        return False
    if found is None or any(found.checkpoint.state.offsets.get(name, -1) < at for name, at in ends.items()):
        return False
    release = found.checkpoint.state.release
    return release is not None and any(other.time_ms == release.time_ms for other in _releases(settings))


def _releases(settings: Settings) -> list[Release]:
    from trainer.releases import history

    return history(settings)


def _latest(settings: Settings) -> checkpoint.Checkpoint:
    found = checkpoint.load_latest(checkpoint.path_of(settings, FEATURES.version))
    assert found is not None
    assert not found.skipped, found.skipped
    return found.checkpoint


def _everything(settings: Settings) -> dict[str, Any]:
    """All that a run leaves behind and that must not depend on kills: by name, arrays or plain values."""
    import tensorflow as tf

    found = _latest(settings)
    state = {name: getattr(found.state, name) for name in found.state.__struct_fields__ if name != "release"}
    served = tf.train.load_checkpoint(
        str(settings.model_path / str(directory.live_version(settings.model_path)) / "variables" / "variables")
    )
    return {
        **found.learner,
        **{f"reservoir/{name}": value for name, value in found.reservoir._asdict().items()},
        **{f"unseen/{name}": value for name, value in found.unseen._asdict().items()},
        **{f"retry/{name}": value for name, value in found.retry.samples._asdict().items()},
        "refusals": found.retry.refusals,
        **{f"served/{name}": np.asarray(served.get_tensor(name)) for name in served.get_variable_to_shape_map()},
        **{f"state/{name}": value for name, value in state.items()},
        "versions": directory.versions(settings.model_path),
        "left over": sorted(path.name for path in settings.model_path.glob(".*")),
        MODEL_RELEASES: [
            (
                r.version,
                r.parent,
                r.outcome,
                r.reason,
                {**r.metrics, **dict.fromkeys(MEASURED, 0.0)},
                r.offsets,
                r.examples,
                r.lineage,
            )
            for r in _releases(settings)
        ],
    }


def _differences(one: dict[str, Any], two: dict[str, Any]) -> Iterable[str]:
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two:
            yield f"{name}: only in the {'undisturbed' if name in one else 'killed'} run"
            continue
        a, b = one[name], two[name]
        if not isinstance(a, np.ndarray):
            if a != b:
                yield f"{name}: {str(a)[:300]}, killed: {str(b)[:300]}"
        elif a.shape != b.shape or a.dtype != b.dtype:
            yield f"{name}: {a.shape} {a.dtype}, killed: {b.shape} {b.dtype}"
        elif a.tobytes() != b.tobytes() and not (a.dtype.kind == "O" and np.array_equal(a, b)):
            yield f"{name}: {int((a != b).sum())} of {a.size} values"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.trainer", description="kill -9 of the trainer, then every weight")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {STEP_EXAMPLES} examples, that the log holds")
    parser.add_argument("--break", dest="broken", choices=[*MODES], default="", help="run a trainer that is broken on purpose")
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    console = Console(stderr=True, quiet=options.json)
    try:
        with tempfile.TemporaryDirectory(prefix="liveshelf-chaos-") as home:
            report = run(Path(home), options.seed, options.kills, options.steps, options.broken, console)
    except NotDoneError as error:
        print(f"the run did not finish: {error}", file=sys.stderr)
        return 3
    for line in report.differences:
        console.print(f"✗ {line}", style="red", markup=False, highlight=False)
    print(msgspec.json.encode(report).decode())
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
