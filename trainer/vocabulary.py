"""Item ids ↔ rows of the item table: 0 pads, the next few are shared by unknown ids (by hash), then one row an item, for good."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

OOV_ROWS = 8  # unknown items share these: enough that two new items on one shelf mostly differ
FIRST_ROW = 1 + OOV_ROWS


class Vocabulary:
    """Grows at the end; a row never moves or changes its item."""

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self.ids: list[bytes] = []
        self._row_of: dict[bytes, int] = {b"": 0}
        self.admit(ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows_used(self) -> int:
        return FIRST_ROW + len(self.ids)

    def admit(self, ids: Iterable[bytes]) -> int:
        """Give each new id a row, in the order given; return how many were new."""
        before = len(self.ids)
        for item in ids:
            if item and item not in self._row_of:
                self._row_of[item] = self.rows_used
                self.ids.append(item)
        return len(self.ids) - before

    def rows(self, items: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Rows of `items` (dtype S, any shape), as the exported graph looks them up."""
        row_of = self._row_of
        found = np.fromiter((row_of.get(item, -1) for item in items.ravel().tolist()), np.int32, items.size)
        unknown = found < 0
        if unknown.any():
            found[unknown] = 1 + hash_buckets(items.ravel()[unknown])
        return found.reshape(items.shape)


def hash_buckets(items: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """The bucket (0 to OOV_ROWS - 1) of each id, by the hash that the graph uses (fingerprint64 modulo the buckets)."""
    import tensorflow as tf

    buckets: npt.NDArray[np.int32] = tf.strings.to_hash_bucket_fast(items, OOV_ROWS).numpy().astype(np.int32)
    return buckets
