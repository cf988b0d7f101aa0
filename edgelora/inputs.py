"""Model inputs of a data set that lies in memory: tokenized texts, and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import DataError
from edgelora.manifest import Manifest
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


def checked_arrays(manifest: Manifest, inputs: Mapping[str, Array]) -> ArrayInputs:
    """Arrays by graph input name, in the graph's types.

    Raises:
        DataError: one is missing or not an input, or has another type or shape; or tokens that the model does not know.
    """
    specs = {spec.name: spec for spec in manifest.inputs}
    given = {name: np.asarray(array) for name, array in inputs.items()}
    problems = [f"{name} is missing" for name in specs if name not in given]
    problems += [f"{name} is not an input of this bundle" for name in sorted(set(given) - set(specs))]
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        array = given.get(name)
        if array is None:
            continue
        if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            problems.append(f"{name} has type {array.dtype}, the bundle takes {spec.dtype}")
        fits = array.ndim == len(spec.shape) and all(
            d == s if isinstance(d, int) else d == "?" or sizes.setdefault(d, s) == s
            for d, s in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            known = ", ".join(f"{d} {s}" for d, s in sizes.items())
            problems.append(f"{name} has shape {array.shape}, the bundle takes {spec.shape} ({known or 'any sizes'})")
    language = manifest.language
    ids = given["input_ids"] if language is not None and not problems else np.zeros(0)
    if language is not None and ids.size and not 0 <= ids.min() <= ids.max() < language.vocabulary:
        problems.append(f"input_ids has {ids.min()} to {ids.max()}, and the model knows {language.vocabulary} tokens")
    if problems:
        raise DataError("; ".join(problems))
    return ArrayInputs({name: np.ascontiguousarray(given[name], dtype=spec.dtype) for name, spec in specs.items()})
