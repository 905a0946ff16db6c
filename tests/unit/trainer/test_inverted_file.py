"""The inverted file: every vector stands in one place, and what is near is found in the blocks looked into."""

import numpy as np
import pytest

from trainer.inverted_file import SIZE, Blocks, Vectors, blocks

N, DIM, TASTES = 6_000, 16, 60


def unit(vectors: Vectors) -> Vectors:
    result: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return result


def clustered(rng: np.random.Generator, n: int = N) -> Vectors:
    """Around TASTES directions, the first of which has half of all."""
    tastes = unit(rng.normal(size=(TASTES, DIM)))
    of = np.where(rng.random(n) < 0.5, 0, rng.integers(TASTES, size=n))
    return unit(tastes[of] + 0.4 * rng.normal(size=(n, DIM)) / DIM**0.5)


def found(made: Blocks, query: Vectors, probed: int) -> set[int]:
    near = np.argsort(-(made.middles @ query))[:probed]
    return set(made.rows[near].ravel().tolist())


@pytest.mark.parametrize("n", [1, SIZE, SIZE + 1, N])
def test_every_vector_stands_in_exactly_one_place(n: int) -> None:
    vectors = clustered(np.random.default_rng(1), n)
    made = blocks(vectors, 1)
    assert sorted(made.rows[made.rows < n].tolist()) == list(range(n))
    assert (made.vectors[made.rows < n] == vectors[made.rows[made.rows < n]]).all()
    assert not made.vectors[made.rows == n].any(), "an empty place is near to nothing"
    assert np.linalg.norm(made.middles, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_the_nearest_stand_in_a_few_blocks() -> None:
    rng = np.random.default_rng(2)
    vectors = clustered(rng)
    made = blocks(vectors, 1)
    assert len(made.middles) < 2 * N / SIZE
    recall = []
    for query in vectors[rng.choice(N, 50)]:
        nearest = np.argsort(-(vectors @ query))[:50]
        recall.append(len(found(made, query, len(made.middles) // 5) & set(nearest.tolist())) / 50)
    assert np.mean(recall) > 0.9, "a fifth of the blocks; drawn by chance they would hold a fifth"
    assert np.mean([len(found(made, unit(rng.normal(size=(1, DIM)))[0], 1)) for _ in range(20)]) <= SIZE


def test_the_same_seed_gives_the_same_blocks_and_zero_vectors_do_no_harm() -> None:
    vectors = clustered(np.random.default_rng(3))
    vectors[::7] = 0.0
    first, second = blocks(vectors, 5), blocks(vectors, 5)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert np.isfinite(first.middles).all()
