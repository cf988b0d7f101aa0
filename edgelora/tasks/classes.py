"""From logits to classes, by the labels of each row's adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.objectives import Array


def probabilities(logits: Array) -> NDArray[np.float64]:
    """softmax along the last axis."""
    z = logits.astype(np.float64)
    exp = np.exp(z - z.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def named_classes(outputs: Mapping[str, Array], labels: Sequence[tuple[str, ...] | None]) -> list[Any]:
    """The best class of each row, or of each of its places: its label, or its number where the adapter has none."""
    best = outputs["logits"].argmax(-1)
    return [_named(b, names) for b, names in zip(best, labels, strict=True)]


def scored_classes(
    outputs: Mapping[str, Array], labels: Sequence[tuple[str, ...] | None]
) -> list[dict[str, str | int | float]]:
    """The best class of each row with its probability: `label` and `score`."""
    scores = probabilities(outputs["logits"]).max(-1)
    named = named_classes(outputs, labels)
    return [{"label": label, "score": round(float(s), 4)} for label, s in zip(named, scores, strict=True)]


def _named(best: Any, labels: tuple[str, ...] | None) -> Any:
    if labels is None:
        return best.tolist()
    if np.ndim(best) == 0:
        return labels[int(best)]
    return [labels[int(i)] for i in best]
