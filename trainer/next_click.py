"""The next-click model: an attention encoder of the visit under a tied cosine softmax, and a listwise ranker that sees its scores beside the
session neighbours', repeats and popularity. Exported as one plain SavedModel.

B visits, T places, C candidates, D = DIM. Item rows are ≥ 1; 0 is none.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from features.next_click import COLUMNS, RETRIEVED, VISIT_COLUMNS, Array
from features.sessions import LENGTH, SCORES
from trainer.model import COSINE_SCALE, NEVER, unit

DIM = 100
DROPOUT = 0.45
RATE = 2e-3
BATCH = 64  # of the data of a week: larger ones leave too few updates for the epochs there are
SAMPLED = 4_096
SAMPLED_FROM = 10_000  # items; below, the softmax is over all of them
SAMPLED_POWER = 0.75
BUCKETS = (3, 6, 10, LENGTH)  # most sessions are short: batches of like length save the padding
BUCKET_BATCH = (1.6, 0.8, 0.5, 0.3)  # of BATCH, so that batches hold about as many clicks each
SVD_WINDOW, SVD_ROUNDS, SVD_SPARE, SVD_NOISE = 3, 5, 20, 0.02
RANKER_UNITS, RANKER_DROPOUT, RANKER_RATE, RANKER_DECAY = (64, 32), 0.1, 2e-3, 1e-4
FEATURE_CLIP = 5.0
ENCODE_BATCH = 1_024

Progress = Callable[[int], None]


class Encoder(keras.Model):  # type: ignore[misc]
    """`capacity` item rows. A GRU reads the visit, and attention seen from each of its states gathers what matters."""

    def __init__(self, capacity: int, start: Array | None, seed: int) -> None:
        super().__init__(name="next_click_encoder")
        seeds = iter(range(1_000 * seed, 1_000 * seed + 100))

        def glorot() -> Any:
            return keras.initializers.GlorotUniform(seed=next(seeds))

        self.item = keras.layers.Embedding(
            capacity, DIM, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.1, seed=next(seeds))
        )
        self.item.build(())
        if start is not None:
            length = np.maximum(np.linalg.norm(start, axis=1, keepdims=True), 1e-6)
            self.item.embeddings.assign(start / length + SVD_NOISE * np.random.default_rng(seed).normal(size=start.shape))
        self.drop_in = keras.layers.Dropout(DROPOUT, seed=next(seeds))
        self.drop_out = keras.layers.Dropout(DROPOUT, seed=next(seeds))
        recurrent = keras.initializers.Orthogonal(seed=next(seeds))
        self.gru = keras.layers.GRU(DIM, return_sequences=True, kernel_initializer=glorot(), recurrent_initializer=recurrent)
        self.query = keras.layers.Dense(DIM, kernel_initializer=glorot())
        self.key_ = keras.layers.Dense(DIM, use_bias=False, kernel_initializer=glorot())
        self.out = keras.layers.Dense(DIM, use_bias=False, kernel_initializer=glorot())
        self.distance = self.add_weight(shape=(LENGTH,), initializer="zeros", name="distance")
        self(tf.zeros((1, LENGTH), tf.int32))

    def call(self, rows: Any, training: bool = False) -> Any:
        """[B, T, D] what comes next after each place of [B, T], oldest first, 0 at the end."""
        t = rows.shape[1]
        items = self.drop_in(self.item(rows), training=training)
        states = self.gru(items)
        back = np.arange(t)[:, None] - np.arange(t)[None, :]
        match = tf.matmul(self.query(states), self.key_(states), transpose_b=True) / DIM**0.5
        match = match + tf.gather(self.distance, np.maximum(back, 0))[None]
        seen = (back >= 0)[None] & (rows > 0)[:, None, :]
        gathered = tf.matmul(tf.nn.softmax(tf.where(seen, match, NEVER), axis=-1), items)
        return self.out(self.drop_out(tf.concat([states, gathered, items], axis=-1), training=training))

    def last(self, recent: Any) -> Any:
        """[B, D] unit vectors of visits [B, LENGTH] as they are served: latest first; unknown items (0) anywhere are left out."""
        known = tf.gather(recent, tf.argsort(tf.cast(recent == 0, tf.int32), axis=1, stable=True), batch_dims=1)
        n = tf.reduce_sum(tf.cast(known > 0, tf.int32), axis=1)
        states = self(tf.reverse_sequence(known, n, seq_axis=1))
        return unit(tf.gather(states, tf.maximum(n - 1, 0), batch_dims=1))


def fit_encoder(
    sessions: Sequence[Sequence[int]], items: int, epochs: int, seed: int, on_step: Progress = lambda _: None
) -> Encoder:
    """Learn from sessions of rows in [1, items)."""
    keras.utils.set_random_seed(seed)
    x, y = _windows(sessions)
    model = Encoder(items, spectral(sessions, items, seed), seed)
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build(model.trainable_variables)
    share = np.bincount(y[y > 0], minlength=items) ** SAMPLED_POWER
    share[0] = 0.0
    cumulative = np.cumsum(share / share.sum())
    sampled = SAMPLED if items > SAMPLED_FROM else 0
    log_expected = tf.constant(np.log(np.maximum(share / share.sum() * max(sampled, 1), 1e-12)), tf.float32)
    steps = {width: _step(model, optimizer, width, log_expected if sampled else None) for width in BUCKETS}
    rng = np.random.default_rng(seed)
    batches = [b for _ in range(epochs) for b in _batches(x, rng)]
    for done, (width, rows) in enumerate(batches):
        optimizer.learning_rate.assign(RATE * min(1.0, (done + 1) / 100) * (1 - 0.9 * done / len(batches)))
        pool = np.searchsorted(cumulative, rng.random(sampled) * cumulative[-1]).astype(np.int32)
        steps[width](x[rows, :width], y[rows, :width], pool)
        on_step(len(rows))
    return model


def _windows(sessions: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """[N, LENGTH] clicks and [N, LENGTH] what came after each; 0 where nothing did."""
    parts = [s[at : at + LENGTH + 1] for s in sessions for at in range(0, len(s) - 1, LENGTH)]
    x, y = np.zeros((len(parts), LENGTH), np.int32), np.zeros((len(parts), LENGTH), np.int32)
    for k, part in enumerate(parts):
        x[k, : len(part) - 1], y[k, : len(part) - 1] = part[:-1], part[1:]
    return x, y


def _batches(x: Array, rng: np.random.Generator) -> list[tuple[int, Array]]:
    """One epoch: (width, which windows)."""
    order = rng.permutation(len(x))
    bucket = np.searchsorted(BUCKETS, (x > 0).sum(axis=1)[order])
    batches: list[tuple[int, Array]] = []
    for q, width in enumerate(BUCKETS):
        rows = order[bucket == q]
        if len(rows):
            batches += [(width, part) for part in np.array_split(rows, max(1, round(len(rows) / (BATCH * BUCKET_BATCH[q]))))]
    return [batches[k] for k in rng.permutation(len(batches))]


def _step(model: Encoder, optimizer: Any, width: int, log_expected: Any | None) -> Any:
    """One update by cross-entropy of cosines over all items, or, given how often each is expected in a pool, over the pool (logQ)."""

    def step(x: Any, y: Any, pool: Any) -> None:
        with tf.GradientTape() as tape:
            real = tf.reshape(y, [-1]) > 0
            states = unit(tf.boolean_mask(tf.reshape(model(x, training=True), [-1, DIM]), real))
            wanted = tf.boolean_mask(tf.reshape(y, [-1]), real)
            table = model.item.embeddings
            if log_expected is None:
                logits = COSINE_SCALE * tf.matmul(states, unit(table), transpose_b=True)
                logits += tf.one_hot(0, table.shape[0], on_value=NEVER)[None]
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(wanted, logits))
            else:
                own = COSINE_SCALE * tf.reduce_sum(states * unit(tf.gather(table, wanted)), axis=-1)
                others = COSINE_SCALE * tf.matmul(states, unit(tf.gather(table, pool)), transpose_b=True)
                others -= tf.gather(log_expected, pool)[None]
                others = tf.where(wanted[:, None] == pool[None], NEVER, others)
                loss = tf.reduce_mean(tf.reduce_logsumexp(tf.concat([own[:, None], others], axis=1), axis=1) - own)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    clicks = tf.TensorSpec([None, width], tf.int32)
    return tf.function(step, input_signature=[clicks, clicks, tf.TensorSpec([None], tf.int32)])


def spectral(sessions: Sequence[Sequence[int]], items: int, seed: int) -> Array:
    """[items, DIM] truncated SVD of positive pointwise mutual information within SVD_WINDOW places: where the embeddings begin."""
    flat = np.array([row for s in sessions for row in s], np.int64)
    of = np.repeat(np.arange(len(sessions)), [len(s) for s in sessions])
    near = [(flat[:-gap][same], flat[gap:][same], gap) for gap in range(1, SVD_WINDOW + 1) if (same := of[:-gap] == of[gap:]).any()]
    if not near:
        return np.zeros((items, DIM), np.float32)
    key = np.concatenate([k for a, b, _ in near for k in (a * items + b, b * items + a)])
    weight = np.concatenate([np.full(2 * len(a), 1.0 / gap) for a, _, gap in near])
    pairs, where = np.unique(key, return_inverse=True)
    count = np.bincount(where, weight)
    a, b = pairs // items, pairs % items
    a, b, count = a[a != b], b[a != b], count[a != b]
    total = np.bincount(a, count, items)
    value = np.log(np.maximum(count * count.sum() / (total[a] * total[b]), 1e-9))
    kept = value > 0
    if not kept.any():
        return np.zeros((items, DIM), np.float32)
    matrix = tf.sparse.reorder(tf.SparseTensor(np.stack([a, b], 1)[kept], value[kept].astype(np.float32), (items, items)))
    basis = np.random.default_rng(seed).normal(size=(items, DIM + SVD_SPARE)).astype(np.float32)
    for _ in range(SVD_ROUNDS):
        basis, _ = np.linalg.qr(tf.sparse.sparse_dense_matmul(matrix, basis).numpy())
    small = tf.sparse.sparse_dense_matmul(matrix, basis).numpy().T @ basis
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    top = np.argsort(-np.abs(values))[:DIM]
    found = ((basis @ vectors[:, top]) * np.sqrt(np.abs(values[top]))).astype(np.float32)
    return np.pad(found, ((0, 0), (0, DIM - found.shape[1])))


def retrieve(encoder: Encoder, recent: Array, n: int = RETRIEVED) -> Array:
    """[B, n] nearest rows, nearest first, for [B, LENGTH] visits (latest first)."""
    ask = tf.function(
        lambda r: _nearest(encoder, r, unit(encoder.item.embeddings), n)[1],
        input_signature=[tf.TensorSpec([None, LENGTH], tf.int32)],
    )
    return np.concatenate([ask(recent[at : at + ENCODE_BATCH]).numpy() for at in range(0, len(recent), ENCODE_BATCH)])


def _nearest(encoder: Encoder, recent: Any, table: Any, n: int) -> Any:
    scores = tf.matmul(encoder.last(recent), table, transpose_b=True) + tf.one_hot(0, table.shape[0], on_value=NEVER)[None]
    return tf.math.top_k(scores, min(n, table.shape[0]))


def inputs_of(encoder: Encoder, table: Any, recent: Any, candidates: Any, columns: Any, visit: Any) -> Any:
    """[B, C, F] the ranker's inputs. Training calls it, and the exported graph holds it: the same numbers in both."""
    real = candidates > 0
    shown = tf.cast(real, tf.float32)
    cosine = tf.matmul(encoder.last(recent), table, transpose_b=True) + tf.one_hot(0, table.shape[0], on_value=NEVER)[None]
    every = COSINE_SCALE * cosine
    chance = tf.gather(every, candidates, batch_dims=1)
    log_sum = tf.reduce_logsumexp(every, axis=1, keepdims=True)
    best = tf.reduce_max(every, axis=1, keepdims=True)
    neighbours, popularity = columns[:, :, : len(SCORES)], columns[:, :, len(SCORES) :]
    most = tf.maximum(tf.reduce_max(neighbours, axis=1, keepdims=True), 1e-9)
    share = neighbours / tf.maximum(tf.reduce_sum(neighbours, axis=1, keepdims=True), 1e-9)
    by_neighbours, by_encoder = _rank(tf.where(real, neighbours[:, :, 0], NEVER)), _rank(tf.where(real, chance, 2 * NEVER))
    same = (candidates[:, :, None] == recent[:, None, :]) & real[:, :, None]
    times = tf.reduce_sum(tf.cast(same, tf.float32), axis=2)
    first = tf.where(times > 0, tf.argmax(tf.cast(same, tf.int32), axis=2, output_type=tf.int32), -1)
    places = [tf.cast(first == k, tf.float32) for k in range(3)] + [tf.cast(first > 2, tf.float32)]
    like = tf.einsum("bcd,bd->bc", tf.gather(table, candidates), tf.gather(table, recent[:, 0]))
    single = [1 / (1 + by_neighbours), tf.math.log1p(by_neighbours), chance - log_sum, chance - best, 1 / (1 + by_encoder)]
    single += [
        tf.math.log1p(by_encoder),
        tf.cast(times > 0, tf.float32),
        *places,
        times,
        like,
        popularity[:, :, 1] - popularity[:, :, -1],
    ]
    own = [tf.math.log(neighbours / most + 1e-3), tf.math.log(share + 1e-4), popularity, tf.cast(neighbours > 0, tf.float32)]
    own.append(tf.stack(single, axis=-1))
    n = tf.reduce_sum(tf.cast(recent > 0, tf.float32), axis=1, keepdims=True)
    lengths = [tf.cast(n == k, tf.float32) for k in (1.0, 2.0, 3.0)] + [
        tf.cast((n > 3) & (n < 6), tf.float32),
        tf.cast(n > 5, tf.float32),
    ]
    repeated = tf.cast((recent[:, :1] == recent[:, 1:2]) & (n > 1), tf.float32)
    of_visit = [*lengths, tf.math.log1p(n), repeated, visit, best - log_sum, tf.reduce_max(share[:, :, 0], axis=1, keepdims=True)]
    of_visit += [tf.math.log1p(most[:, 0, 0:1]), tf.math.log1p(most[:, 0, 2:3])]
    side = tf.concat(of_visit, axis=1)[:, None, :]
    return tf.concat([*own, tf.tile(side, [1, tf.shape(candidates)[1], 1])], axis=-1) * shown[:, :, None]


def _rank(scores: Any) -> Any:
    """[B, C] places from 0, the first of equals first."""
    order = tf.argsort(scores, axis=1, direction="DESCENDING", stable=True)
    return tf.cast(tf.argsort(order, axis=1), tf.float32)


class Ranker(keras.Model):  # type: ignore[misc]
    """A score for each candidate of a list: an MLP beside a linear path."""

    def __init__(self, mean: Array, scale: Array) -> None:
        super().__init__(name="next_click_ranker")
        self.mean = self.add_weight(shape=mean.shape, initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=mean.shape, initializer="ones", trainable=False, name="scale")
        self.mean.assign(mean)
        self.scale.assign(scale)
        self.hidden = [keras.layers.Dense(units, activation="gelu") for units in RANKER_UNITS]
        self.drop = keras.layers.Dropout(RANKER_DROPOUT)
        self.out, self.linear = keras.layers.Dense(1), keras.layers.Dense(1, use_bias=False)
        self(tf.zeros((1, 1, *mean.shape)), tf.ones((1, 1), tf.bool))

    def call(self, inputs: Any, real: Any, training: bool = False) -> Any:
        inputs = tf.clip_by_value((inputs - self.mean) / self.scale, -FEATURE_CLIP, FEATURE_CLIP)
        hidden = inputs
        for layer in self.hidden:
            hidden = self.drop(layer(hidden), training=training)
        return tf.where(real, (self.out(hidden) + self.linear(inputs))[..., 0], NEVER)


def fit_ranker(
    encoder: Encoder, asked: dict[str, Array], wanted: Array, epochs: int, seed: int, on_step: Progress = lambda _: None
) -> Ranker:
    """Learn which of `asked`'s candidates (see features.next_click) is the `wanted` [B] one; lists without it teach nothing."""
    keras.utils.set_random_seed(seed)
    at = asked["candidates"] == wanted[:, None]
    usable = np.flatnonzero(at.any(axis=1) & (wanted > 0))
    real, place = asked["candidates"] > 0, at.argmax(axis=1).astype(np.int32)
    make = tf.function(lambda *given: inputs_of(encoder, unit(encoder.item.embeddings), *given))
    names = ("recent", "candidates", "candidate_features", "visit_features")
    inputs = np.concatenate(
        [make(*(asked[name][k : k + ENCODE_BATCH] for name in names)).numpy() for k in range(0, len(wanted), ENCODE_BATCH)]
    )
    mean, scale = _moments(inputs, real)
    model = Ranker(mean, scale)
    optimizer = keras.optimizers.AdamW(RANKER_RATE, weight_decay=RANKER_DECAY)
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(x: Any, shown: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, shown, training=True)))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True))

    rng = np.random.default_rng(seed)
    starts = range(0, len(usable), BATCH)
    for epoch in range(epochs):
        order = rng.permutation(usable)
        for k, start in enumerate(starts):
            rows = order[start : start + BATCH]
            optimizer.learning_rate.assign(RANKER_RATE * (1 - 0.95 * (epoch * len(starts) + k) / (epochs * len(starts))))
            step(inputs[rows], real[rows], place[rows])
            on_step(len(rows))
    return model


def _moments(inputs: Array, real: Array) -> tuple[Array, Array]:
    shown = inputs[real] if real.any() else np.zeros((1, inputs.shape[-1]), np.float32)
    return shown.mean(axis=0, dtype=np.float64).astype(np.float32), np.maximum(shown.std(axis=0, dtype=np.float64), 0.05).astype(
        np.float32
    )


def write(encoder: Encoder, ranker: Ranker, ids: Sequence[str], path: Path) -> None:
    """Export to `path`; `ids` are the items of rows 1, 2, …"""
    module = _Served(encoder, ranker, ids)
    tf.saved_model.save(
        module, str(path), signatures={"retrieve": module.retrieve, "rank": module.rank, "serving_default": module.rank}
    )


class _Served(tf.Module):  # type: ignore[misc]
    """String ids in and out, as trainer.export: only variables and a lookup table are saved."""

    def __init__(self, encoder: Encoder, ranker: Ranker, ids: Sequence[str]) -> None:
        super().__init__()
        self.weights = [weight.value for weight in (*encoder.weights, *ranker.weights)]
        self.vectors = tf.Variable(unit(encoder.item.embeddings), trainable=False)
        self.ids = tf.Variable(tf.constant(["", *ids]), trainable=False)
        rows = tf.range(1, 1 + len(ids), dtype=tf.int32)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(list(ids)), rows), default_value=0)

        def retrieve(recent_items: Any) -> dict[str, Any]:
            score, at = _nearest(encoder, self.table.lookup(recent_items), self.vectors, RETRIEVED)
            return {"item": tf.gather(self.ids, at), "score": score}

        def rank(recent_items: Any, candidates: Any, candidate_features: Any, visit_features: Any) -> dict[str, Any]:
            rows = self.table.lookup(candidates)
            given = inputs_of(encoder, self.vectors, self.table.lookup(recent_items), rows, candidate_features, visit_features)
            return {"score": ranker(given, rows > 0)}

        visits = tf.TensorSpec([None, LENGTH], tf.string, "recent_items")
        self.retrieve = tf.function(retrieve).get_concrete_function(visits)
        self.rank = tf.function(rank).get_concrete_function(
            visits,
            tf.TensorSpec([None, None], tf.string, "candidates"),
            tf.TensorSpec([None, None, len(COLUMNS)], tf.float32, "candidate_features"),
            tf.TensorSpec([None, len(VISIT_COLUMNS)], tf.float32, "visit_features"),
        )
