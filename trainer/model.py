"""The model: a sequence encoder of the shopper's recent items, cosine retrieval over all items, and a ranker of three objectives.

Works on item rows (see vocabulary) and on the encoder's columns; nothing else feeds it. Written in keras.ops, without TensorFlow.

B shoppers, C candidates, R items in the sequence, S shopper features, F candidate features, D = DIM, n sampled negatives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from features.events import EVENT_NAMES
from features.feature_set import FeatureSet
from trainer.samples import TASKS

Tensor = Any
Tensors = dict[str, Any]

DIM = 32  # of an item's vector: 100,000 items are 13 MB, and more did not rank better at this size of log
HIDDEN = 64
FIRST_STDDEV = 0.05  # of embeddings: small at first, so that an item not learnt yet hardly moves a score
COSINE_SCALE = (
    14.0  # inverse temperature of the retrieval softmax: cosines lie in [-1, 1], and e^±1 cannot single out one item of many
)
FEATURE_CLIP = 5.0  # standard deviations; beyond it a feature is an outlier, not a signal
AGE_MAX = 12.0  # log(1 + hours): 18 years
NEVER = -1e9  # added to a masked logit: its softmax weight is exactly 0


class Norm(keras.layers.Layer):  # type: ignore[misc]
    """Features in standard deviations from their mean, which are set and not learnt."""

    def __init__(self, features: int, name: str) -> None:
        super().__init__(name=name)
        self.mean = self.add_weight(shape=(features,), initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=(features,), initializer="ones", trainable=False, name="scale")

    def call(self, values: Tensor) -> Tensor:
        return ops.clip((values - self.mean) / self.scale, -FEATURE_CLIP, FEATURE_CLIP)


class Given(keras.layers.Layer):  # type: ignore[misc]
    """Vectors that are set and not learnt."""

    def __init__(self, rows: int, name: str) -> None:
        super().__init__(name=name)
        self.vectors = self.add_weight(shape=(rows, DIM), initializer="zeros", trainable=False, name="vectors")


class ShelfModel(keras.Model):  # type: ignore[misc]
    """One set of weights for `capacity` item rows, and `content_capacity` further rows for items that are known by their content only.

    `seed` fixes the initial weights.
    """

    def __init__(self, features: FeatureSet, capacity: int, seed: int, content_capacity: int = 0) -> None:
        super().__init__(name="shelf")
        self.capacity, self.content_capacity = capacity, content_capacity
        self._table: Tensor | None = None
        self.recent = features.sequence.n
        self.shopper_features = len(features.shopper_columns)
        f = len(features.candidate_columns)
        seeds = iter(range(1000 * seed, 1000 * seed + 100))

        def dense(units: int, name: str, activation: str | None = None) -> keras.layers.Dense:
            start = keras.initializers.GlorotUniform(seed=next(seeds))
            return keras.layers.Dense(units, activation=activation, kernel_initializer=start, name=name)

        def embedding(rows: int, name: str) -> keras.layers.Embedding:
            start = keras.initializers.RandomNormal(stddev=FIRST_STDDEV, seed=next(seeds))
            return keras.layers.Embedding(rows, DIM, embeddings_initializer=start, name=name)

        self.item = embedding(capacity, "item")
        self.event = embedding(1 + len(EVENT_NAMES), "event")
        self.position = embedding(self.recent, "position")
        self.age = dense(DIM, "age")
        self.query, self.key_, self.value = dense(DIM, "query"), dense(DIM, "key"), dense(DIM, "value")
        self.shopper_hidden, self.shopper_out = dense(HIDDEN, "shopper_hidden", "relu"), dense(DIM, "shopper_out")
        self.rank_hidden, self.rank_hidden_2 = dense(HIDDEN, "rank_hidden", "relu"), dense(HIDDEN // 2, "rank_hidden_2", "relu")
        self.rank_hidden.build((None, 3 * DIM + self.shopper_features + f))
        self.rank_out = dense(len(TASKS), "rank_out")
        self.content, self.content_out = Given(content_capacity, "content"), dense(DIM, "content_out")
        self.content_out.build((None, DIM))
        self.candidate_norm, self.shopper_norm = Norm(f, "candidate_norm"), Norm(self.shopper_features, "shopper_norm")
        self.rank(self._nothing(f))  # creates every layer's weights

    def items(self, rows: Tensor) -> Tensor:
        """[…, D] vectors of item rows; from `capacity` on they are made of the items' content."""
        if self._table is not None:
            return ops.take(self._table, rows, axis=0)
        if not self.content_capacity:
            return self.item(rows)
        own = self.item(ops.minimum(rows, self.capacity - 1))
        made = self.from_content(ops.take(self.content.vectors, ops.maximum(rows - self.capacity, 0), axis=0))
        return ops.where((rows >= self.capacity)[..., None], made, own)

    def from_content(self, vectors: Tensor) -> Tensor:
        """[…, D] vectors of items of which only the content is known, […, D] itself: as DropoutNet (Volkovs et al., 2017), learnt from
        known items whose own vectors are withheld now and then."""
        return self.content_out(vectors)

    @contextmanager
    def reading(self, table: Tensor) -> Iterator[None]:
        """Within, `items` reads the rows of `table` [rows, D]: for a graph that is served, with all vectors made beforehand."""
        self._table = table
        try:
            yield
        finally:
            self._table = None

    def shopper(self, inputs: Tensors) -> Tensor:
        """[B, D] from recent_rows [B, R], recent_events [B, R] and recent_age [B, R].

        The shopper features are for the ranker: how much somebody does, and how long ago, says little about which item is next, and a small
        log teaches it by heart (planted shops, four seeds: the next item among the ten nearest .67 with them, .75 without; AUC the same).
        """
        rows = inputs["recent_rows"]
        mask = ops.cast(ops.not_equal(rows, 0), "float32")
        items = self.items(rows) * mask[:, :, None]
        steps = items + self.event(inputs["recent_events"]) + self.position(ops.arange(self.recent))
        steps = (steps + self.age(ops.clip(inputs["recent_age"], 0.0, AGE_MAX)[:, :, None])) * mask[:, :, None]
        # Attention pooling: what matters of the visit so far, seen from the latest item.
        match = ops.einsum("bd,brd->br", self.query(steps[:, 0]), self.key_(steps)) / DIM**0.5
        weight = ops.softmax(match + (1.0 - mask) * NEVER) * mask
        pooled = ops.einsum("br,brd->bd", weight, self.value(steps))
        joined = ops.concatenate([steps[:, 0], pooled], axis=-1)
        return items[:, 0] + self.shopper_out(self.shopper_hidden(joined))

    def similarity(self, shopper: Tensor, items: Tensor) -> Tensor:
        """[B, n] cosines between shoppers [B, D] and items [n, D]."""
        return ops.matmul(unit(shopper), ops.transpose(unit(items)))

    def rank_logits(self, shopper: Tensor, inputs: Tensors) -> Tensor:
        """[B, C, 3] from candidate_rows [B, C], candidate_features [B, C, F] and shopper_features [B, S]."""
        items = self.items(inputs["candidate_rows"])
        features = self.candidate_norm(inputs["candidate_features"])
        side = ops.concatenate([shopper, self.shopper_norm(inputs["shopper_features"])], axis=-1)
        # One dense layer over (shopper side, item, shopper * item, features), without laying them side by side for each candidate: the
        # shopper's share of it is computed once, and of_item @ item + of_both @ (shopper * item) in one product.
        of_side, of_item, of_both, of_features = ops.split(
            self.rank_hidden.kernel, [DIM + self.shopper_features, 2 * DIM + self.shopper_features, 3 * DIM + self.shopper_features]
        )
        weights = of_item[None] + shopper[:, :, None] * of_both[None]
        hidden = ops.matmul(items, weights) + ops.matmul(features, of_features)
        hidden = ops.relu(hidden + (ops.matmul(side, of_side) + self.rank_hidden.bias)[:, None, :])
        return self.rank_out(self.rank_hidden_2(hidden))

    def rank(self, inputs: Tensors) -> Tensor:
        """[B, C, 3] probabilities of click, cart and purchase."""
        return ops.sigmoid(self.rank_logits(self.shopper(inputs), inputs))

    def _nothing(self, f: int) -> Tensors:
        """Inputs of the right shapes, B = C = 1."""
        return {
            "recent_rows": ops.zeros((1, self.recent), "int32"),
            "recent_events": ops.zeros((1, self.recent), "int32"),
            "recent_age": ops.zeros((1, self.recent)),
            "shopper_features": ops.zeros((1, self.shopper_features)),
            "candidate_rows": ops.zeros((1, 1), "int32"),
            "candidate_features": ops.zeros((1, 1, f)),
        }

    def call(self, inputs: Tensors) -> Tensor:
        return self.rank(inputs)


def unit(vectors: Tensor) -> Tensor:
    """Scaled to length 1; the zero vector stays zero."""
    return vectors / (ops.sqrt(ops.sum(ops.square(vectors), axis=-1, keepdims=True)) + 1e-6)


def rank_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, summed over objectives, each averaged over its known labels; all [B, C, 3]."""
    known = ops.cast(labels >= 0.0, "float32")
    loss = ops.relu(logits) - logits * ops.maximum(labels, 0.0) + ops.log1p(ops.exp(-ops.abs(logits)))
    return ops.sum(ops.sum(loss * known, axis=(0, 1)) / ops.maximum(ops.sum(known, axis=(0, 1)), 1.0))


def retrieval_loss(cosines: Tensor, log_expected: Tensor, positives: Tensor, pool: Tensor) -> Tensor:
    """Sampled softmax: each shopper's positive among a pool shared by the batch.

    Args:
        cosines: [B, B + n]; the pool is the batch's positives, then n sampled rows.
        log_expected: [B + n] log of how often each pool item is expected in such a pool; taken off, so that popular items are not
            punished for standing in it often (logQ correction).
        positives: int [B] rows, 0 where a sample has none; pool: int [B + n] rows.
    """
    logits = COSINE_SCALE * cosines - log_expected[None, :]
    own = ops.eye(ops.shape(positives)[0], ops.shape(pool)[0])
    same = ops.cast(ops.equal(positives[:, None], pool[None, :]), "float32") * (1.0 - own)
    logits = logits + NEVER * ops.maximum(same, ops.cast(ops.equal(pool, 0), "float32")[None, :] * (1.0 - own))
    picked = ops.sum(logits * own, axis=-1)
    valid = ops.cast(ops.not_equal(positives, 0), "float32")
    return ops.sum((ops.logsumexp(logits, axis=-1) - picked) * valid) / ops.maximum(ops.sum(valid), 1.0)
