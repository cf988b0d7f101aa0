"""Anchors and what is like them: a batch of pairs, or of triplets, and the losses that compare its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.objectives.base import Array, Feeds, FileInputs, Inputs, OnSamples
from edgelora.objectives.labels import log_sum_exp

NO_CANDIDATE = np.float32(-1e9)


class Columns:
    """Inputs of samples that have a row in each of several columns: a batch holds one column after the other."""

    def __init__(self, columns: Sequence[Inputs]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def lengths(self) -> NDArray[np.int64]:
        """Of each sample that of its longest column."""
        return np.max([column.lengths() for column in self.columns], axis=0)

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        return stack([column.feeds(rows) for column in self.columns])

    def of_epoch(self, epoch: int) -> Columns:
        return self

    def examine(self) -> None:
        for column in self.columns:
            if isinstance(column, FileInputs):
                column.examine()


class Pairs(OnSamples):
    """Anchors with their positives, and negatives if given: a batch holds anchors, then positives, then negatives.

    With loss "contrastive" every other positive (and every negative) of the batch is a negative for an
    anchor (multiple negatives ranking, arXiv:1705.00652); with "triplet" each anchor has its own.
    Metrics: `recall@1`, the share of anchors whose own positive is the most similar of all.
    """

    metric, higher_is_better = "recall@1", True

    def __init__(
        self, columns: Mapping[str, Inputs], loss: str, temperature: float = 0.05, margin: float = 0.5
    ) -> None:
        self.loss, self.temperature, self.margin = loss, temperature, margin
        self.columns = [columns[name] for name in ("anchor", "positive", "negative") if name in columns]
        self.data = Columns(self.columns)
        self.separable = loss == "triplet"  # else the others of the batch are an anchor's negatives

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        n, k = len(rows), len(self.columns)
        weight = np.full(n, 1.0 / total, np.float32)
        shared: Feeds = {"anchors": np.arange(n), "positives": np.arange(n, 2 * n), "loss_weight": weight}
        if self.loss == "triplet":
            shared |= {"negatives": np.arange(2 * n, 3 * n), "margin": np.asarray(self.margin, np.float32)}
        else:
            mask = np.zeros((n, k * n), np.float32)
            mask[:, :n] = NO_CANDIDATE
            sharpness = np.asarray(1.0 / self.temperature, np.float32)
            shared |= {"bias_mask": mask, "inverse_temperature": sharpness}
        return shared

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        parts = [np.split(batch.astype(np.float64), len(self.columns)) for batch in outputs]
        anchors = np.concatenate([p[0] for p in parts])
        positives = np.concatenate([p[1] for p in parts])
        similarity = anchors @ positives.T
        own = np.arange(len(anchors))
        z = similarity / self.temperature
        loss = float((log_sum_exp(z) - z[own, own]).mean())
        return {"loss": loss, "recall@1": float((similarity.argmax(1) == own).mean())}


def stack(parts: Sequence[Feeds]) -> Feeds:
    """Feeds of several batches as one, padded with zeros to the widest (token 0 is masked out)."""
    joined: Feeds = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        widest = [max(a.shape[axis] for a in arrays) for axis in range(1, arrays[0].ndim)]
        padded = [np.pad(a, [(0, 0), *((0, w - s) for w, s in zip(widest, a.shape[1:], strict=True))]) for a in arrays]
        joined[name] = np.concatenate(padded)
    return joined
