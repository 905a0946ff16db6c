"""The model together with what learning adds: vocabulary, item frequencies and optimiser state. Deterministic on CPU for a given seed."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from features.declarations import Position, Trend
from features.encoder import Inputs
from features.feature_set import FeatureSet
from features.rows import CatalogItem
from trainer import model
from trainer.content import Content
from trainer.model import rank_loss, retrieval_loss, unit
from trainer.samples import TASKS, Array, Samples
from trainer.vocabulary import FIRST_ROW, Limits, Turnover, Vocabulary

CAPACITY_AT_FIRST = 1024  # rows; doubled whenever full, so growth is rare and its retracing too
BATCH_MIN, BATCH_MAX = 32, 256
BATCHES_PER_EPOCH = (
    80  # what batches are sized for: with 256 a log of 3,000 events got 30 updates in three epochs and retrieved at random
)
SAMPLED = 512  # negatives of the retrieval loss beside the batch's own positives
SAMPLED_POWER = 0.75  # as in bootstrap: popular items are hard negatives, rare ones must be pushed away too
RETRIEVAL_WEIGHT = 0.3  # its cross-entropy starts near ln(768) = 6.6, the ranker's three near 2: neither drowns the other
UNKNOWN_SHARE = 0.02  # of ids replaced by an unknown row while learning, so that those rows come to mean "some item"
CONTENT_SHARE = 0.1  # of ids replaced by the content of their item, where it has any, so that content comes to stand for an item
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

    def __init__(self, features: FeatureSet, seed: int, limits: Limits | None = None) -> None:
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
        self.vocabulary = Vocabulary(limits=limits)
        self.content = Content(model.DIM, self.vocabulary.limits.items_max)
        self.frequency = np.zeros(0)  # by row - FIRST_ROW, how often each item was acted on
        self._make(CAPACITY_AT_FIRST)

    def know(self, catalog: Iterable[CatalogItem]) -> None:
        """Take over what the catalog says of items; nothing is learnt."""
        if not self.content.take(catalog):
            return
        if len(self.content.vectors) > self.model.content_capacity:
            self._grow(self.model.capacity)
        else:
            self.model.content.vectors.assign(self.content.vectors)

    def admit(self, samples: Samples, time_ms: int = 0) -> Turnover:
        """Count the items of `samples` at the time of their events, give those seen often enough rows (they start as the content says, if
        it says anything) and take back the rows of those unseen for long; the table grows when full.

        A sighting is a place on a shelf, or to be a shopper's latest item; earlier ones were sighted when they were the latest.
        """
        sighted = chain(samples.candidates.ravel().tolist(), samples.recent_items[:, 0].tolist())
        turnover = self.vocabulary.see(sighted, samples.recent_items[:, 1:].ravel().tolist(), time_ms)
        self.frequency = np.pad(self.frequency, (0, len(self.vocabulary.ids) - len(self.frequency)))
        self.frequency[np.array(turnover.taken, np.int64) - FIRST_ROW] = 0.0
        capacity = self.model.capacity
        while capacity < self.vocabulary.rows_used:
            capacity *= 2
        if capacity != self.model.capacity:
            self._grow(capacity)
        self._start(turnover)
        acted = self.vocabulary.rows(samples.candidates[(samples.labels > 0).any(axis=-1)])
        np.add.at(self.frequency, acted[acted >= FIRST_ROW] - FIRST_ROW, 1.0)
        return turnover

    def rows(self, items: Array) -> npt.NDArray[np.int32]:
        """Rows of `items`: their own, that of their content from `model.capacity` on, or one shared by unknown ones."""
        capacity = self.model.capacity
        return self.vocabulary.rows(items, {item: capacity + at for item, at in self.content.place.items()})

    def table(self) -> tuple[list[bytes], Array]:
        """The items that a served model knows, and [FIRST_ROW + items, D] all vectors: the shared rows, those with a row, those with content."""
        own = self.vocabulary.items
        others = [(item, at) for item, at in self.content.place.items() if item not in own]
        vectors = self.model.item.embeddings.numpy()
        made = self.model.from_content(self.content.vectors[[at for _, at in others]]) if others else vectors[:0]
        return [*own, *(item for item, _ in others)], np.concatenate([vectors[:FIRST_ROW], vectors[list(own.values())], made])

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
        self._content_rows = np.zeros(
            self.vocabulary.rows_used, np.int32
        )  # row → row of the same item's content, 0 where there is none
        for item, row in self.vocabulary.items.items():
            if (at := self.content.place.get(item)) is not None:
                self._content_rows[row] = self.model.capacity + at
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

    def shoppers(self, inputs: Sequence[Inputs]) -> npt.NDArray[np.float32]:
        """[B, D] unit vectors of shoppers, as `Encoder.shopper` encodes them."""
        columns = {name: np.stack([one[name] for one in inputs]) for name in ("recent_items", "recent_events", "recent_age")}
        rows = {"recent_rows": self.rows(columns.pop("recent_items").astype("S"))}
        found: npt.NDArray[np.float32] = self._shoppers(
            {name: tf.constant(value) for name, value in (rows | columns).items()}
        ).numpy()
        return found

    def state(self) -> Arrays:
        """Everything as arrays, by name; copies."""
        return {
            **{f"weight/{i:02}/{w.path}": np.array(w.numpy()) for i, w in enumerate(self.model.weights)},
            **{f"optimizer/{i:02}/{v.path}": np.array(v.numpy()) for i, v in enumerate(self.optimizer.variables)},
            **self.vocabulary.state(),
            **self.content.state(),
            "frequency": self.frequency.copy(),
        }

    def restore(self, state: Arrays) -> None:
        """Take over `state`, also when its tables are of another capacity."""
        weights = [value for name, value in sorted(state.items()) if name.startswith("weight/")]
        slots = [value for name, value in sorted(state.items()) if name.startswith("optimizer/")]
        capacity, content = (
            next(len(value) for name, value in state.items() if name.startswith("weight/") and name.endswith(of))
            for of in ("/item/embeddings", "/content/vectors")
        )
        if (capacity, content) != (self.model.capacity, self.model.content_capacity):
            self._make(capacity, content)
        for variable, value in zip([*self.model.weights, *self.optimizer.variables], [*weights, *slots], strict=True):
            variable.assign(value)
        self.vocabulary.restore(state)
        self.content.restore(state, self.model.content.vectors.numpy())
        self.frequency = state["frequency"].copy()

    def _make(self, capacity: int, content: int = 0) -> None:
        """A fresh model and optimiser, and the graphs that run them."""
        self.model = model.ShelfModel(self.features, capacity, self.seed, content)
        self.optimizer = keras.optimizers.Adam(global_clipnorm=CLIP_NORM, name="adam")
        self.optimizer.build(self.model.trainable_variables)
        # Signatures with open sizes: one trace each, whatever the batch.
        self._learn = tf.function(self._learn_eagerly, input_signature=[_specs(self._input_shapes | _LEARN_SHAPES)])
        self._predict = tf.function(self.model.rank, input_signature=[_specs(self._input_shapes)])
        visit = {name: self._input_shapes[name] for name in ("recent_rows", "recent_events", "recent_age")}
        self._shoppers = tf.function(lambda inputs: unit(self.model.shopper(inputs)), input_signature=[_specs(visit)])

    def _start(self, turnover: Turnover) -> None:
        """Rows given to an item start afresh: no vector, momentum or velocity of the item before stays."""
        if not turnover.given:
            return
        rows = np.array(turnover.given)
        first = np.array([self._first_vector(self.vocabulary.ids[row - FIRST_ROW]) for row in turnover.given], np.float32)
        known = [
            (n, at)
            for n, row in enumerate(rows)
            if (at := self.content.place.get(self.vocabulary.ids[row - FIRST_ROW])) is not None
        ]
        if known:
            first[[n for n, _ in known]] = self.model.from_content(self.content.vectors[[at for _, at in known]])
        for variable, value in ((self.model.item.embeddings, first), *((slot, 0.0) for slot in self._item_slots())):
            table = variable.numpy()
            table[rows] = value
            variable.assign(table)

    def _first_vector(self, item: bytes) -> Array:
        """The same for an item wherever and whenever it gets a row."""
        words = int.from_bytes(hashlib.sha1(item, usedforsecurity=False).digest()[:8])
        return np.random.default_rng([self.seed, words]).normal(0.0, model.FIRST_STDDEV, model.DIM)

    def _item_slots(self) -> list[Any]:
        """Adam's two moments of the item table."""
        return [v for v in self.optimizer.variables if v.path.endswith(("/item_embeddings_momentum", "/item_embeddings_velocity"))]

    def _grow(self, capacity: int) -> None:
        """Tables of `capacity` rows, and as many of content as there are: old rows and their optimiser state stay."""
        old = [v.numpy() for v in (*self.model.weights, *self.optimizer.variables)]
        self._make(capacity, len(self.content.vectors))
        for variable, value in zip([*self.model.weights, *self.optimizer.variables], old, strict=True):
            if variable.shape == value.shape:
                variable.assign(value)
            else:
                variable.assign(np.concatenate([value, variable.numpy()[len(value) :]]))
        self.model.content.vectors.assign(self.content.vectors)

    def _columns(self, samples: Samples) -> dict[str, Array]:
        return {
            "recent_rows": self.rows(samples.recent_items),
            "recent_events": samples.recent_events,
            "recent_age": samples.recent_age,
            "shopper_features": samples.shopper_features,
            "candidate_rows": self.rows(samples.candidates),
            "candidate_features": samples.candidate_features,
            "labels": samples.labels,
        }

    def _batch(self, columns: dict[str, Array], rows: Array, rng: np.random.Generator) -> dict[str, Any]:
        batch = {name: column[rows] for name, column in columns.items()}
        positives = _one_positive(batch["candidate_rows"], batch["labels"], self.model.capacity, rng)
        for name in ("recent_rows", "candidate_rows"):
            batch[name] = _some_unknown(self._some_by_content(batch[name], rng), self.model.capacity, rng)
        frequency = self.frequency if len(self.frequency) else np.zeros(1)
        weight = frequency**SAMPLED_POWER
        chance = weight / max(weight.sum(), 1.0)
        cumulative = np.cumsum(chance)
        at = np.searchsorted(cumulative, rng.random(SAMPLED) * cumulative[-1]) if weight.any() else np.zeros(SAMPLED, np.int64)
        pool = np.concatenate([positives, FIRST_ROW + np.minimum(at, len(cumulative) - 1)]).astype(np.int32)
        index = np.maximum(pool - FIRST_ROW, 0)
        share = frequency / max(frequency.sum(), 1.0)
        expected = len(positives) * share[index] + SAMPLED * chance[index]
        batch["positives"], batch["pool"] = positives, pool
        batch["log_expected"] = np.log(np.maximum(expected, 1e-6)).astype(np.float32)
        return {name: tf.constant(value) for name, value in batch.items()}

    def _some_by_content(self, rows: Array, rng: np.random.Generator) -> Array:
        """`rows`, some of the known items replaced by their content."""
        if not len(self.content):
            return rows
        of_row = self._content_rows
        by_content = of_row[np.minimum(rows, len(of_row) - 1)]
        return np.where(
            (rng.random(rows.shape) < CONTENT_SHARE) & (by_content > 0) & (rows < self.model.capacity), by_content, rows
        )

    def _learn_eagerly(self, batch: dict[str, Any]) -> Any:
        with tf.GradientTape() as tape:
            shopper = self.model.shopper(batch)
            cosines = self.model.similarity(shopper, self.model.items(batch["pool"]))
            retrieval = retrieval_loss(cosines, batch["log_expected"], batch["positives"], batch["pool"])
            loss = rank_loss(self.model.rank_logits(shopper, batch), batch["labels"]) + RETRIEVAL_WEIGHT * retrieval
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, variables)  # None where nothing was read: the content's while no item has any
        self.optimizer.apply([tf.zeros(v.shape) if g is None else g for g, v in zip(gradients, variables, strict=True)], variables)
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


def _one_positive(rows: Array, labels: Array, capacity: int, rng: np.random.Generator) -> Array:
    """[B] one row acted on of each sample, any of them by chance; 0 where there is none with a row of its own."""
    acted = (labels > 0).any(axis=-1) & (rows >= FIRST_ROW) & (rows < capacity)
    pick = np.where(acted, rng.random(acted.shape), -1.0).argmax(axis=1)
    return np.where(acted.any(axis=1), rows[np.arange(len(rows)), pick], 0).astype(np.int32)


def _some_unknown(rows: Array, capacity: int, rng: np.random.Generator) -> Array:
    replace = (rng.random(rows.shape) < UNKNOWN_SHARE) & (rows >= FIRST_ROW) & (rows < capacity)
    return np.where(replace, rng.integers(1, FIRST_ROW, rows.shape), rows).astype(np.int32)
