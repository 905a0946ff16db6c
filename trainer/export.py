"""Writes the learnt model as one plain SavedModel: ids are looked up inside the graph, no custom operations, so stock TensorFlow Serving
runs it. (Where it goes: directory.)
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from features.feature_set import FeatureSet
from liveshelf.errors import ConflictError
from trainer.inverted_file import blocks
from trainer.learner import Learner
from trainer.model import unit
from trainer.samples import TASKS
from trainer.vocabulary import FIRST_ROW, OOV_ROWS

RETRIEVED_MAX = 200  # items a retrieval answers with: four times what a shelf of 50 could use after filters
EXACT_MAX = 20_000  # items that are all compared, in 0.4 ms of a processor; 100,000 took 1.9 ms, through blocks 0.4
PROBED = 64  # blocks looked into beyond that
SEED = 1
NO_COSINE = -2.0  # below any
PROBES = 5  # timings of a shelf; the first also prepares the graph
WARMUP_CANDIDATES = (10, 500)  # a small shelf, and the size the latency target is set at


def shopper_specs(features: FeatureSet) -> dict[str, Any]:
    """The shopper's inputs of both signatures; retrieval has no use for shopper_features yet (see model)."""
    n = features.sequence.n
    return {
        "recent_items": tf.TensorSpec([None, n], tf.string, "recent_items"),
        "recent_events": tf.TensorSpec([None, n], tf.int32, "recent_events"),
        "recent_age": tf.TensorSpec([None, n], tf.float32, "recent_age"),
        "shopper_features": tf.TensorSpec([None, len(features.shopper_columns)], tf.float32, "shopper_features"),
    }


def candidate_specs(features: FeatureSet) -> dict[str, Any]:
    """The further inputs of ranking."""
    return {
        "candidates": tf.TensorSpec([None, None], tf.string, "candidates"),
        "candidate_features": tf.TensorSpec([None, None, len(features.candidate_columns)], tf.float32, "candidate_features"),
    }


def write(learner: Learner, path: Path, version: int, model_name: str) -> None:
    """Write the model with its warm-up requests to `path`.

    Raises:
        ConflictError: the disk does not take it. What stands at `path` then is no model.
    """
    module = _Served(learner)
    signatures = {"retrieve": module.retrieve, "rank": module.rank, "describe": module.describe, "serving_default": module.rank}
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
        _write_warmup(path, model_name, version, learner.features)
    except (OSError, tf.errors.OpError) as error:  # TensorFlow has errors of its own for the disk
        raise ConflictError(f"cannot write a model to {path}: {error}. Free space or make it writable.") from error


class Probe(NamedTuple):
    """What a SavedModel did when asked as a server asks it."""

    outputs: dict[str, tuple[tuple[int, ...], bool]]
    """Output → (shape, whether every number is finite), for B = 2 and C = 3."""
    rank_ms: float
    """One shelf of the most candidates in WARMUP_CANDIDATES, the quickest of PROBES: what it takes when nothing else wants the processor."""


def probe(path: Path, features: FeatureSet) -> Probe:
    """Load a SavedModel as a server would, and ask it."""
    served = tf.saved_model.load(str(path))

    def ask(signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = served.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return answer

    outputs = {}
    for signature, inputs in (("retrieve", example_inputs(features, 2)), ("rank", example_inputs(features, 2, 3))):
        for name, value in ask(signature, inputs).items():
            finite = bool(np.isfinite(value.numpy()).all()) if value.dtype.is_floating else True
            outputs[f"{signature}/{name}"] = (tuple(value.shape), finite)
    shelf = example_inputs(features, 1, max(WARMUP_CANDIDATES))
    took = []
    for _ in range(PROBES):
        start = time.perf_counter()
        ask("rank", shelf)
        took.append(time.perf_counter() - start)
    return Probe(outputs, 1000 * min(took))


def operations(path: Path) -> dict[str, bool]:
    """Every operation of a SavedModel's graph and functions → whether plain TensorFlow has it. Those of saving and restoring, which
    TensorFlow adds itself and a server calls once, are left out."""
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    found: set[str] = set()
    functions: set[str] = set()
    for graph in saved.meta_graphs:
        found |= {node.op for node in graph.graph_def.node if not node.name.startswith("save/")}
        for function in graph.graph_def.library.function:
            functions.add(function.signature.name)
            if "traced_save" not in function.signature.name and "traced_restore" not in function.signature.name:
                found |= {node.op for node in function.node_def}
    return {name: op_def_registry.get(name) is not None for name in found - functions}


def expected_outputs(items: int) -> dict[str, tuple[int, ...]]:
    """The shapes that `probe` must find for a vocabulary of `items`."""
    k = min(RETRIEVED_MAX, items)
    return {"retrieve/item": (2, k), "retrieve/score": (2, k), **{f"rank/{task}": (2, 3) for task in TASKS}}


def example_inputs(features: FeatureSet, shoppers: int, candidates: int = 0) -> dict[str, Any]:
    """Inputs of a shopper with one unknown item, for warming up and probing: the work does not depend on the values."""
    n, s, f = features.sequence.n, len(features.shopper_columns), len(features.candidate_columns)
    recent = np.full((shoppers, n), b"", dtype=object)
    recent[:, 0] = b"?"
    inputs: dict[str, Any] = {
        "recent_items": recent,
        "recent_events": np.zeros((shoppers, n), np.int32),
        "recent_age": np.zeros((shoppers, n), np.float32),
        "shopper_features": np.zeros((shoppers, s), np.float32),
    }
    if candidates:
        inputs["candidates"] = np.full((shoppers, candidates), b"?", dtype=object)
        inputs["candidate_features"] = np.zeros((shoppers, candidates, f), np.float32)
    return inputs


class _Served(tf.Module):  # type: ignore[misc]
    """The signatures over the learner's weights. Only variables and a lookup table are saved, none of our classes."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        model = learner.model
        ids, vectors = learner.table()
        # These variables, and not the Keras model around them, are saved: the tables only as far as they are in use.
        self.weights = [w.value for w in model.weights if w.path not in (model.item.embeddings.path, model.content.vectors.path)]
        rows = tf.range(FIRST_ROW, FIRST_ROW + len(ids), dtype=tf.int64)
        known = tf.lookup.KeyValueTensorInitializer(tf.constant([b"", *ids]), tf.concat([tf.zeros(1, tf.int64), rows], axis=0))
        self.table = tf.lookup.StaticHashTable(known, default_value=-1)
        self.items = tf.Variable(vectors, trainable=False)
        self.ids = tf.Variable(tf.constant([*ids, b""], tf.string), trainable=False)
        nearest = self._nearest(unit(vectors[FIRST_ROW:]), min(RETRIEVED_MAX, len(ids)))  # normalised here, not at every request

        def lookup(items: Any) -> Any:
            unknown = 1 + tf.strings.to_hash_bucket_fast(items, OOV_ROWS)
            found = self.table.lookup(items)
            return tf.cast(tf.where(found < 0, unknown, found), tf.int32)

        def retrieve(**inputs: Any) -> dict[str, Any]:
            shopper = unit(model.shopper(inputs | {"recent_rows": lookup(inputs["recent_items"])}))
            score, row = nearest(shopper)
            return {"item": tf.gather(self.ids, row), "score": score}

        def rank(**inputs: Any) -> dict[str, Any]:
            rows = {"recent_rows": lookup(inputs["recent_items"]), "candidate_rows": lookup(inputs["candidates"])}
            chances = model.rank(inputs | rows)
            return {task: chances[:, :, i] for i, task in enumerate(TASKS)}

        def describe(ask: Any) -> dict[str, Any]:
            return {"feature_version": tf.fill(tf.shape(ask), learner.features.version)}

        of_shopper, of_candidates = shopper_specs(learner.features), candidate_specs(learner.features)
        with model.reading(self.items):
            self.retrieve = tf.function(retrieve).get_concrete_function(**of_shopper)
            self.rank = tf.function(rank).get_concrete_function(**of_shopper, **of_candidates)
        self.describe = tf.function(describe).get_concrete_function(ask=tf.TensorSpec([None], tf.string, "ask"))

    def _nearest(self, vectors: Any, k: int) -> Callable[[Any], tuple[Any, Any]]:
        """Shoppers [B, D] → cosines and rows [B, k] of the items nearest to them, the nearest first; a row past the last where there is none."""
        if len(vectors) <= EXACT_MAX:
            self.vectors = tf.Variable(vectors, trainable=False)
            return lambda shopper: tf.math.top_k(tf.matmul(shopper, self.vectors, transpose_b=True), k)
        made = blocks(np.asarray(vectors), SEED)
        self.blocks, self.middles, self.rows = (tf.Variable(array, trainable=False) for array in made)
        probed = min(PROBED, len(made.middles))
        looked_at = probed * made.rows.shape[1]

        def nearest(shopper: Any) -> tuple[Any, Any]:
            _, near = tf.math.top_k(tf.matmul(shopper, self.middles, transpose_b=True), probed, sorted=False)
            found = tf.reshape(tf.gather(self.blocks, near), [-1, looked_at, vectors.shape[1]])
            rows = tf.reshape(tf.gather(self.rows, near), [-1, looked_at])
            cosine = tf.where(rows < len(vectors), tf.linalg.matvec(found, shopper), NO_COSINE)
            score, at = tf.math.top_k(cosine, k)
            return score, tf.gather(rows, at, batch_dims=1)

        return nearest


def _write_warmup(path: Path, model_name: str, version: int, features: FeatureSet) -> None:
    """Requests that a model server runs before it calls the version ready: all signatures, ranking at each of WARMUP_CANDIDATES.

    They ask for the very outputs that the scorer does: TensorFlow prepares each set of outputs anew when it is first asked for, 100 ms and more.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    extra = path / "assets.extra"
    extra.mkdir()
    requests: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
        ("retrieve", example_inputs(features, 1), ("item",)),
        *(("rank", example_inputs(features, 1, c), TASKS) for c in WARMUP_CANDIDATES),
        ("describe", {"ask": np.array([b""], dtype=object)}, ("feature_version",)),
    ]
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as out:
        for signature, inputs, outputs in requests:
            request = predict_pb2.PredictRequest(output_filter=outputs)
            request.model_spec.name, request.model_spec.signature_name = model_name, signature
            request.model_spec.version.value = version
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            out.write(log.SerializeToString())
