"""Model inputs of a data set that lies in memory: tokenized texts, and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelora.objectives import Array, Feeds

if TYPE_CHECKING:
    from edgelora.text import TextEncoder


class TokenInputs:
    """Tokenized texts, padded batch by batch."""

    def __init__(self, encoder: TextEncoder, ids: Sequence[NDArray[np.int64]]) -> None:
        self.encoder, self.ids = encoder, ids

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> NDArray[np.int64]:
        return np.asarray([len(row) for row in self.ids], np.int64)

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        return {**self.encoder.collate([self.ids[int(row)] for row in rows])}


class ArrayInputs:
    """Samples that are rows of arrays, by graph input name."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def lengths(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        return {name: array[rows] for name, array in self.arrays.items()}
