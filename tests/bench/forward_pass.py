"""`KERAS_BACKEND=jax python -m tests.bench.forward_pass`: the model's forward pass by batch size, beside what the memory could carry.

Runs on whatever device the Keras backend (tensorflow, jax or torch) finds, a GPU where there is one. Bytes are those that the pass cannot
avoid: its inputs and outputs, the item vectors it gathers or compares with, and its weights, each once. The last line is one JSON object.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
from keras import ops

from features.declarations import read_declarations
from features.events import EVENT_NAMES
from features.feature_set import FeatureSet
from trainer.model import DIM, ShelfModel, Tensors
from trainer.samples import TASKS

ITEMS, CANDIDATES, RETRIEVED = 100_000, 500, 500
BATCHES = (1, 32, 512)
MEASURED_S = 2.0
COPIED_BYTES = 1 << 30


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as the backend runs it in production: traced once, without gradients."""
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            return tf.function(function)  # type: ignore[no-any-return]
        case "jax":
            import jax

            return jax.jit(function)
        case _:
            import torch

            return torch.no_grad()(function)


def seconds(call: Callable[[], Any]) -> float:
    """Mean time of a call, from the first's start to the last's result in this process, over MEASURED_S."""
    ops.convert_to_numpy(call()[:1])
    count, started = 0, time.perf_counter()
    while time.perf_counter() < started + MEASURED_S:
        for _ in range(10):
            last = call()
        ops.convert_to_numpy(last[:1])  # work is queued in order: the last is done when all are
        count += 10
    return (time.perf_counter() - started) / count


def inputs(model: ShelfModel, features: FeatureSet, batch: int) -> Tensors:
    rng = np.random.default_rng(1)
    arrays = {
        "recent_rows": rng.integers(1, ITEMS, (batch, model.recent)).astype("int32"),
        "recent_events": rng.integers(1, len(EVENT_NAMES), (batch, model.recent)).astype("int32"),
        "recent_age": rng.random((batch, model.recent), "float32"),
        "shopper_features": rng.random((batch, model.shopper_features), "float32"),
        "candidate_rows": rng.integers(1, ITEMS, (batch, CANDIDATES)).astype("int32"),
        "candidate_features": rng.random((batch, CANDIDATES, len(features.candidate_columns)), "float32"),
    }
    return {name: ops.convert_to_tensor(array) for name, array in arrays.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.forward_pass", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    features = FeatureSet(read_declarations(None))
    model = ShelfModel(features, ITEMS, seed=1)
    rank = compiled(model.rank)
    retrieve = compiled(lambda given, items: ops.top_k(model.similarity(model.shopper(given), items), RETRIEVED)[0])
    items = ops.convert_to_tensor(np.random.default_rng(2).standard_normal((ITEMS, DIM), "float32"))
    block = ops.zeros((COPIED_BYTES // 4,))
    copy = compiled(lambda x: x + 1.0)
    copying_s = seconds(lambda: copy(block))
    figures: dict[str, Any] = {
        "backend": keras.backend.backend(),
        "copy_gb_per_s": round(2 * COPIED_BYTES / copying_s / 1e9, 1),
        "items": ITEMS,
        "candidates": CANDIDATES,
    }
    small = sum(int(np.prod(w.shape)) for w in model.weights if "item/" not in w.path) * 4
    for batch in BATCHES:
        given = inputs(model, features, batch)
        entering = sum(int(np.prod(tensor.shape)) * 4 for tensor in given.values())
        gathered = batch * model.recent * DIM * 4
        for name, call, moved in (
            ("rank", lambda given=given: rank(given), entering + gathered + batch * CANDIDATES * (DIM + len(TASKS)) * 4 + small),
            ("retrieve", lambda given=given: retrieve(given, items), gathered + ITEMS * DIM * 4 + batch * RETRIEVED * 4 + small),
        ):
            taken = seconds(call)
            figures[f"{name}_{batch}_ms"] = round(taken * 1e3, 4)
            figures[f"{name}_{batch}_us_a_request"] = round(taken * 1e6 / batch, 2)
            figures[f"{name}_{batch}_of_bandwidth"] = round(moved / taken / 1e9 / figures["copy_gb_per_s"], 4)
            if not options.json:
                print(f"{name} of {batch}: {taken * 1e3:.3f} ms, {moved / 1e6:.1f} MB", file=sys.stderr)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
