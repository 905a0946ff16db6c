"""What the catalog says of items beyond their id: their embeddings, brought to the width of an item's vector.

A shop's embeddings have hundreds of numbers; a Gaussian random projection keeps their distances well enough to tell like from unlike
(Johnson and Lindenstrauss, 1984), needs no fitting, and is the same on every run. What they mean for ranking is learnt (see model).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from features.rows import CatalogItem

NORM = 0.28  # of a vector: that of an item's own when it is new, so that neither drowns the other
SEED = 17  # of the projection, which must never change: vectors made before and after would mean different things

Floats = npt.NDArray[np.float32]


class Content:
    """Items with an embedding, at most `items_max`, each with a place of its own for good."""

    def __init__(self, dim: int, items_max: int) -> None:
        self.items_max = items_max
        self.place: dict[bytes, int] = {}
        self.vectors = np.zeros((0, dim), np.float32)
        """[places or more, dim]."""
        self.length = 0
        """Of the shop's embeddings."""
        self._projection = np.zeros((0, dim))

    def __len__(self) -> int:
        return len(self.place)

    def take(self, items: Iterable[CatalogItem]) -> bool:
        """Learn of `items`, the latest record of each counts; whether anything changed.

        Embeddings of another length come from another embedder, and the two cannot be compared: all earlier ones are dropped.
        """
        latest = {item.item_id.encode(): item.embedding for item in items if item.embedding and np.isfinite(item.embedding).all()}
        if not latest:
            return False
        length = len(next(reversed(latest.values())))
        if length != self.length:
            self.length = length
            self.place.clear()
        rows = [(item, embedding) for item, embedding in latest.items() if len(embedding) == length]
        for (item, _), vector in zip(rows, self._projected([embedding for _, embedding in rows]), strict=True):
            if item not in self.place:
                if len(self.place) >= self.items_max:
                    continue
                self.place[item] = len(self.place)
            self._put(self.place[item], vector)
        return True

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {"content": np.array(list(self.place), dtype="S"), "content_length": np.array(self.length, dtype=np.int64)}

    def restore(self, state: dict[str, npt.NDArray[Any]], vectors: Floats) -> None:
        """Take over what `state` returned, with the vectors that stand in the model."""
        self.place = {item: at for at, item in enumerate(state["content"].tolist())}
        self.length, self.vectors = int(state["content_length"]), vectors.copy()

    def _projected(self, embeddings: list[tuple[float, ...]]) -> Floats:
        if len(self._projection) != self.length:
            self._projection = np.random.default_rng([SEED, self.length]).standard_normal((self.length, self.vectors.shape[1]))
        raw = np.array(embeddings, dtype=np.float64).reshape(-1, self.length)
        length = np.sqrt((raw**2).sum(axis=1, keepdims=True))
        unit = raw / np.where(length > 0, length, 1.0)
        projected: Floats = (unit @ self._projection / self.vectors.shape[1] ** 0.5 * NORM).astype(np.float32)
        return projected

    def _put(self, at: int, vector: Floats) -> None:
        if at >= len(self.vectors):
            self.vectors = np.pad(self.vectors, ((0, max(1024, len(self.vectors))), (0, 0)))
        self.vectors[at] = vector
