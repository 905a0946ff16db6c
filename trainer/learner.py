"""The model together with what learning adds: vocabulary, item frequencies and optimiser state. Deterministic on CPU for a given seed."""

from itertools import chain
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from features.declarations import Position, Trend
from features.feature_set import FeatureSet
from trainer.model import ShelfModel, rank_loss, retrieval_loss
from trainer.samples import TASKS, Array, Samples
from trainer.vocabulary import FIRST_ROW, Vocabulary

CAPACITY_AT_FIRST = 1024  # rows; doubled whenever full, so growth is rare and its retracing too
BATCH_MIN, BATCH_MAX = 32, 256
BATCHES_PER_EPOCH = (
    80  # what batches are sized for: with 256 a log of 3,000 events got 30 updates in three epochs and retrieved at random
)
SAMPLED = 512  # negatives of the retrieval loss beside the batch's own positives
SAMPLED_POWER = 0.75  # as in bootstrap: popular items are hard negatives, rare ones must be pushed away too
RETRIEVAL_WEIGHT = 0.3  # its cross-entropy starts near ln(768) = 6.6, the ranker's three near 2: neither drowns the other
UNKNOWN_SHARE = 0.02  # of ids replaced by an unknown row while learning, so that those rows come to mean "some item"
LOG_SCALE_MIN, SHARE_SCALE_MIN = 0.5, 0.05
"""What a feature is scaled by at least, so that one that was constant does not blow up when it first moves: a place on the shelf is 0 in
all replayed samples, and log(1 + 9) = 2.3 at the end of a shelf that was shown."""
CLIP_NORM = 5.0  # one wild batch moves the weights no further than a steep ordinary one
PREDICT_BATCH = 512

Arrays = dict[str, Array]


def be_deterministic() -> None:
    """Make TensorFlow's kernels give the same bits on every run; call before the first of them runs."""
    tf.config.experimental.enable_op_determinism()


class Learner:
    """Learns from samples; its whole state goes to arrays and comes back from them."""

    def __init__(self, features: FeatureSet, seed: int) -> None:
        self.features = features
        self.seed = seed
        n, s, f = features.sequence.n, len(features.shopper_columns), len(features.candidate_columns)
        self._input_shapes: dict[str, tuple[Any, list[int | None]]] = {
            "recent_rows": (tf.int32, [None, n]),
            "recent_events": (tf.int32, [None, n]),
            "recent_age": (tf.float32, [None, n]),
            "shopper_features": (tf.float32, [None, s]),
            "candidate_rows": (tf.int32, [None, None]),
            "candidate_features": (tf.float32, [None, None, f]),
        }
        self.vocabulary = Vocabulary()
        self.frequency = np.zeros(0)  # [len(vocabulary)] how often each item was acted on
        self._make(CAPACITY_AT_FIRST)

    def admit(self, samples: Samples) -> int:
        """Give the items of `samples` rows (those acted on are counted); the tables grow when full. Returns the number of new items."""
        new = self.vocabulary.admit(chain(samples.recent_items.ravel().tolist(), samples.candidates.ravel().tolist()))
        self.frequency = np.pad(self.frequency, (0, new))
        capacity = self.model.capacity
        while capacity < self.vocabulary.rows_used:
            capacity *= 2
        if capacity != self.model.capacity:
            self._grow(capacity)
        acted = self.vocabulary.rows(samples.candidates[(samples.labels > 0).any(axis=-1)])
        np.add.at(self.frequency, acted - FIRST_ROW, 1.0)
        return new

    def normalise(self, samples: Samples) -> None:
        """Set the features' mean and scale from `samples`: once, when the first weights are learnt, since all later ones build on it."""
        shopper, candidates = samples.shopper_features, samples.candidate_features[samples.candidates != b""]
        for norm, values, scale_min in (
            (self.model.shopper_norm, shopper, LOG_SCALE_MIN),
            (self.model.candidate_norm, candidates, _scale_min(self.features)),
        ):
            norm.mean.assign(values.mean(axis=0))
            norm.scale.assign(np.maximum(values.std(axis=0), scale_min))

    def fit(self, samples: Samples, rng: np.random.Generator, epochs: int, learning_rate: float) -> float:
        """Learn from `samples` (whose items were admitted), in an order drawn from `rng`; returns the mean loss of the last epoch."""
        columns = self._columns(samples)
        batch = min(max(samples.size // BATCHES_PER_EPOCH, BATCH_MIN), BATCH_MAX)
        self.optimizer.learning_rate.assign(learning_rate)
        losses: list[float] = []
        for _ in range(epochs):
            order = rng.permutation(samples.size)
            parts = [order[at : at + batch] for at in range(0, len(order), batch)]
            losses = [float(self._learn(self._batch(columns, part, rng))) for part in parts]
        return float(np.mean(losses)) if losses else 0.0

    def predict(self, samples: Samples) -> npt.NDArray[np.float32]:
        """[N, C, 3] probabilities."""
        columns = self._columns(samples)
        parts = [
            self._predict(
                {
                    name: tf.constant(column[at : at + PREDICT_BATCH])
                    for name, column in columns.items()
                    if name in self._input_shapes
                }
            ).numpy()
            for at in range(0, samples.size, PREDICT_BATCH)
        ]
        return np.concatenate(parts) if parts else np.zeros(samples.labels.shape, np.float32)

    def state(self) -> Arrays:
        """Everything as arrays, by name; copies."""
        return {
            **{f"weight/{i:02}/{w.path}": np.array(w.numpy()) for i, w in enumerate(self.model.weights)},
            **{f"optimizer/{i:02}/{v.path}": np.array(v.numpy()) for i, v in enumerate(self.optimizer.variables)},
            "vocabulary": np.array(self.vocabulary.ids, dtype="S"),
            "frequency": self.frequency.copy(),
        }

    def restore(self, state: Arrays) -> None:
        """Take over `state`, also when its tables are of another capacity."""
        weights = [value for name, value in sorted(state.items()) if name.startswith("weight/")]
        slots = [value for name, value in sorted(state.items()) if name.startswith("optimizer/")]
        capacity = next(len(value) for name, value in state.items() if name.startswith("weight/") and "/item/" in name)
        if capacity != self.model.capacity:
            self._make(capacity)
        for variable, value in zip([*self.model.weights, *self.optimizer.variables], [*weights, *slots], strict=True):
            variable.assign(value)
        self.vocabulary = Vocabulary(state["vocabulary"].tolist())
        self.frequency = state["frequency"].copy()

    def _make(self, capacity: int) -> None:
        """A fresh model and optimiser, and the graphs that run them."""
        self.model = ShelfModel(self.features, capacity, self.seed)
        self.optimizer = keras.optimizers.Adam(global_clipnorm=CLIP_NORM, name="adam")
        self.optimizer.build(self.model.trainable_variables)
        # Signatures with open sizes: one trace each, whatever the batch.
        self._learn = tf.function(self._learn_eagerly, input_signature=[_specs(self._input_shapes | _LEARN_SHAPES)])
        self._predict = tf.function(self.model.rank, input_signature=[_specs(self._input_shapes)])

    def _grow(self, capacity: int) -> None:
        """Tables of `capacity` rows: old rows and their optimiser state stay, new rows start as a fresh model's."""
        old = [v.numpy() for v in (*self.model.weights, *self.optimizer.variables)]
        self._make(capacity)
        for variable, value in zip([*self.model.weights, *self.optimizer.variables], old, strict=True):
            if variable.shape == value.shape:
                variable.assign(value)
            else:
                variable.assign(np.concatenate([value, variable.numpy()[len(value) :]]))

    def _columns(self, samples: Samples) -> dict[str, Array]:
        return {
            "recent_rows": self.vocabulary.rows(samples.recent_items),
            "recent_events": samples.recent_events,
            "recent_age": samples.recent_age,
            "shopper_features": samples.shopper_features,
            "candidate_rows": self.vocabulary.rows(samples.candidates),
            "candidate_features": samples.candidate_features,
            "labels": samples.labels,
        }

    def _batch(self, columns: dict[str, Array], rows: Array, rng: np.random.Generator) -> dict[str, Any]:
        batch = {name: column[rows] for name, column in columns.items()}
        positives = _one_positive(batch["candidate_rows"], batch["labels"], rng)
        for name in ("recent_rows", "candidate_rows"):
            batch[name] = _some_unknown(batch[name], rng)
        weight = self.frequency**SAMPLED_POWER
        chance = weight / max(weight.sum(), 1.0)
        cumulative = np.cumsum(chance)
        at = np.searchsorted(cumulative, rng.random(SAMPLED) * cumulative[-1]) if weight.any() else np.zeros(SAMPLED, np.int64)
        pool = np.concatenate([positives, FIRST_ROW + np.minimum(at, len(cumulative) - 1)]).astype(np.int32)
        index = np.maximum(pool - FIRST_ROW, 0)
        share = self.frequency / max(self.frequency.sum(), 1.0)
        expected = len(positives) * share[index] + SAMPLED * chance[index]
        batch["positives"], batch["pool"] = positives, pool
        batch["log_expected"] = np.log(np.maximum(expected, 1e-6)).astype(np.float32)
        return {name: tf.constant(value) for name, value in batch.items()}

    def _learn_eagerly(self, batch: dict[str, Any]) -> Any:
        with tf.GradientTape() as tape:
            shopper = self.model.shopper(batch)
            cosines = self.model.similarity(shopper, self.model.item(batch["pool"]))
            retrieval = retrieval_loss(cosines, batch["log_expected"], batch["positives"], batch["pool"])
            loss = rank_loss(self.model.rank_logits(shopper, batch), batch["labels"]) + RETRIEVAL_WEIGHT * retrieval
        self.optimizer.apply(tape.gradient(loss, self.model.trainable_variables), self.model.trainable_variables)
        return loss


_LEARN_SHAPES: dict[str, tuple[Any, list[int | None]]] = {
    "labels": (tf.float32, [None, None, len(TASKS)]),
    "positives": (tf.int32, [None]),
    "pool": (tf.int32, [None]),
    "log_expected": (tf.float32, [None]),
}


def _specs(shapes: dict[str, tuple[Any, list[int | None]]]) -> dict[str, Any]:
    return {name: tf.TensorSpec(shape, dtype, name=name) for name, (dtype, shape) in shapes.items()}


def _scale_min(features: FeatureSet) -> Array:
    """[F] by candidate feature: logarithms are of the order of 1; shares and rates lie in [0, 1], rates near its start."""
    logs = {f.name for f in features.declared.features if isinstance(f, Trend | Position)}
    return np.array(
        [LOG_SCALE_MIN if name in logs or name.startswith("log_") else SHARE_SCALE_MIN for name in features.candidate_columns]
    )


def _one_positive(rows: Array, labels: Array, rng: np.random.Generator) -> Array:
    """[B] one row acted on of each sample, any of them by chance; 0 where there is none."""
    acted = (labels > 0).any(axis=-1) & (rows >= FIRST_ROW)
    pick = np.where(acted, rng.random(acted.shape), -1.0).argmax(axis=1)
    return np.where(acted.any(axis=1), rows[np.arange(len(rows)), pick], 0).astype(np.int32)


def _some_unknown(rows: Array, rng: np.random.Generator) -> Array:
    replace = (rng.random(rows.shape) < UNKNOWN_SHARE) & (rows >= FIRST_ROW)
    return np.where(replace, rng.integers(1, FIRST_ROW, rows.shape), rows).astype(np.int32)
