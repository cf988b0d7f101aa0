"""How near the gradients of a quantized bundle are to those of its float32 twin, point by point.

The twin is not in the bundle; what it answered is: one batch, a probe adapter at every point, random cotangents (of a
language model, those of the tokens that come next), and its gradients, recorded at conversion. A point's cosine is that
of its gradients of A and B, taken together; its size is how much of the twin's gradient they hold, of the tensor for
which that is furthest from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

from edgelora.bundle import Bundle
from edgelora.errors import BundleError
from edgelora.manifest import InsertionPoint

QUANTIZATION_FILE = "quantization.safetensors"
LEAST_COSINE, LEAST_OF_MANY = 0.99, 0.95
SIZE_TOLERANCE = 0.25

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class QuantizedVerdict:
    """How a point's gradients lie to those in float32: their cosine, and <ours, theirs>/<theirs, theirs>."""

    id: str
    cosine: float
    size: float
    passed: bool


def has_twin(bundle: Bundle) -> bool:
    """Whether the bundle was quantized at conversion, so that the answers of its float32 twin lie in it."""
    return QUANTIZATION_FILE in bundle.manifest.files


def check_quantization(bundle: Bundle) -> tuple[QuantizedVerdict, ...]:
    """A verdict for every point that a gradient reaches; none where the bundle was not quantized at conversion.

    Raises:
        BundleError: the twin's answers cannot be read.
    """
    if not has_twin(bundle):
        return ()
    path = bundle.path / QUANTIZATION_FILE
    try:
        arrays: dict[str, NDArray[Any]] = load_file(path)
    except Exception as error:
        raise BundleError(f"{path}: cannot be read ({error}); convert the model again") from error
    feeds = {name.removeprefix("in/"): x for name, x in arrays.items() if name.startswith("in/")}
    twin = {name.removeprefix("out/"): x for name, x in arrays.items() if name.startswith("out/")}
    loss = "cotangent" if bundle.manifest.language is None else "cross-entropy"
    graph = bundle.graph(bundle.training(loss, dropout=False).file)
    found = graph.run(feeds, list(twin))
    points = [point for point in bundle.manifest.trainable if is_reached(point, found, twin)]
    cosines = [cosine(point, found, twin) for point in points]
    near = near_enough(cosines, bundle.manifest.language is not None)
    return tuple(_verdict(*one, found, twin) for one in zip(points, cosines, near, strict=True))


def near_enough(cosines: Sequence[float], language: bool, margin: float = 0.0) -> list[bool]:
    """Whether each point is: at 0.99. Of a language model, whose points are many, at 0.95 where their mean is 0.99.

    The mean counts every point alike, however small its gradient: AdamW steps as far there (docs/decisions/0041).
    """
    deep = language and bool(cosines) and float(np.mean(cosines)) >= LEAST_COSINE + margin
    return [one >= (LEAST_OF_MANY if deep else LEAST_COSINE) + margin for one in cosines]


def _verdict(point: InsertionPoint, turned: float, near: bool, found: Arrays, twin: Arrays) -> QuantizedVerdict:
    size = _size(point, found, twin)
    return QuantizedVerdict(point.id, turned, size, near and abs(size - 1) <= SIZE_TOLERANCE)


def is_reached(point: InsertionPoint, found: Arrays, twin: Arrays) -> bool:
    """Whether either has a gradient of A or B at a point that is not all zeros: without one there is no direction."""
    return any(np.any(x[name]) for x in (found, twin) for name in _names(point, twin))


def cosine(point: InsertionPoint, found: Arrays, twin: Arrays) -> float:
    """Of the gradients of A and B at a point that is reached; those that the twin lacks are zeros."""
    names = _names(point, twin)
    a, b = (
        np.concatenate([np.asarray(x[n], np.float64).ravel() for n in names] or [np.zeros(1)]) for x in (found, twin)
    )
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.nan_to_num(a @ b / lengths, nan=-1.0)) if lengths else 0.0


def _size(point: InsertionPoint, found: Arrays, twin: Arrays) -> float:
    """Of the tensor for which it is furthest from 1; noise hardly moves it, a wrong sign or factor does."""
    sizes = [1.0]
    for name in _names(point, twin):
        ours, theirs = (np.asarray(x[name], np.float64).ravel() for x in (found, twin))
        if theirs.any():
            sizes.append(float(np.nan_to_num(ours @ theirs / (theirs @ theirs))))
    return max(sizes, key=lambda size: abs(size - 1))


def _names(point: InsertionPoint, twin: Arrays) -> list[str]:
    return [f"grad.{name}" for name in (point.input_a, point.input_b) if f"grad.{name}" in twin]
