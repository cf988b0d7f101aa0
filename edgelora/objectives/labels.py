"""Cross-entropy of labels: one of each sample, or one of each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.objectives.base import Array, Feeds, Floats, Inputs, OnSamples


class Classification(OnSamples):
    """Cross-entropy of a label per sample. `class_weights` `[classes]` multiplies each sample's loss."""

    loss, metric, higher_is_better = "cross-entropy", "accuracy", True

    def __init__(self, data: Inputs, labels: NDArray[np.int64], class_weights: Floats | None = None) -> None:
        self.data, self.labels = data, labels
        ones = np.ones(len(labels), np.float32)
        self.weights: Floats = ones if class_weights is None else class_weights[labels].astype(np.float32)

    def weight(self, rows: NDArray[np.int64]) -> float:
        return float(self.weights[rows].sum())

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        weight = self.weights[rows] / np.float32(total)
        return {"labels": self.labels[rows], "loss_weight": weight}

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        logits = np.concatenate(outputs).astype(np.float64)
        labels = self.labels[np.concatenate(rows)]
        nll = log_sum_exp(logits) - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
        return {"loss": float(nll.mean()), "accuracy": float((logits.argmax(1) == labels).mean())}


class TokenClassification(OnSamples):
    """Cross-entropy of a label per token; `labels[i]` is the i-th sample's, −100 where none counts.

    The labels are padded with −100 to the width that the inputs were padded to.
    """

    loss, metric, higher_is_better = "cross-entropy", "accuracy", True
    IGNORED = -100

    def __init__(self, data: Inputs, labels: Sequence[NDArray[np.int64]], class_weights: Floats | None = None) -> None:
        self.data, self.labels, self.class_weights = data, labels, class_weights

    def weight(self, rows: NDArray[np.int64]) -> float:
        return sum(float(self._weights(self.labels[int(row)]).sum()) for row in rows.tolist()) or 1.0

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        width = max(len(self.labels[int(row)]) for row in rows.tolist())
        labels = np.full((len(rows), width), self.IGNORED, np.int64)
        for i, row in enumerate(rows.tolist()):
            labels[i, : len(self.labels[int(row)])] = self.labels[int(row)]
        weight = self._weights(labels) / np.float32(total)
        return {"labels": np.maximum(labels, 0), "loss_weight": weight}

    def _weights(self, labels: NDArray[np.int64]) -> Floats:
        counted = labels != self.IGNORED
        if self.class_weights is None:
            return counted.astype(np.float32)
        return (self.class_weights[np.maximum(labels, 0)] * counted).astype(np.float32)

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        nll: list[NDArray[np.float64]] = []
        hits: list[NDArray[np.bool_]] = []
        for logits, batch in zip(outputs, rows, strict=True):
            for row_logits, row in zip(np.asarray(logits, np.float64), batch.tolist(), strict=True):
                labels: NDArray[np.int64] = self.labels[int(row)]
                counted = np.flatnonzero(labels != self.IGNORED)
                z, y = row_logits[counted], labels[counted]
                nll.append(log_sum_exp(z) - np.take_along_axis(z, y[:, None], 1)[:, 0])
                hits.append(z.argmax(1) == y)
        return {"loss": float(np.concatenate(nll).mean()), "accuracy": float(np.concatenate(hits).mean())}


def log_sum_exp(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """log Σ exp(z) along the last axis."""
    peak = z.max(-1, keepdims=True)
    return np.log(np.exp(z - peak).sum(-1)) + peak[..., 0]


def balanced_weights(labels: NDArray[np.int64], classes: int) -> Floats:
    """n/(k·n_c) for each class c (scikit-learn's class_weight="balanced"); 1 for a class without samples."""
    return balanced_by_count(np.bincount(labels, minlength=classes))


def balanced_by_count(counts: NDArray[np.int64]) -> Floats:
    """`balanced_weights` of labels of which there are so many in each class, `[classes]`."""
    whole = counts.sum() / len(counts)
    return np.where(counts > 0, whole / np.maximum(counts, 1), 1.0).astype(np.float32)
