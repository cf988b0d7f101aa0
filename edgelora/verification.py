"""Are two recordings of one speaker? The equal error rate, and the objective that draws a speaker's sounds together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.objectives import NO_CANDIDATE, Array, Feeds, Inputs, OnSamples, log_sum_exp

Doubles = NDArray[np.float64]
_MOST_COMPARED = 4096  # sounds whose pairs are all compared; of more, so many are taken


def equal_error_rate(scores: Doubles, same: NDArray[np.bool_]) -> tuple[float, float]:
    """The error rate at which as many pairs of one speaker are refused as pairs of two are accepted, and its threshold.

    A pair is accepted whose score is at least the threshold; `same` `[pairs]` tells which are of one speaker. Between
    two scores the rates are taken to be linear. NaN where all pairs are of one kind.
    """
    own, others = int(same.sum()), int((~same).sum())
    if not own or not others:
        return float("nan"), float("nan")
    order = np.argsort(-scores, kind="stable")
    sorted_scores, is_same = scores[order], same[order]
    last = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))  # of each score
    accepted = np.concatenate([[0.0], np.cumsum(~is_same)[last] / others])
    refused = np.concatenate([[1.0], 1.0 - np.cumsum(is_same)[last] / own])
    at = int(np.argmax(accepted >= refused))
    before, after = refused[at - 1] - accepted[at - 1], accepted[at] - refused[at]
    share = before / (before + after)
    rate = accepted[at - 1] + share * (accepted[at] - accepted[at - 1])
    return float(rate), float(sorted_scores[last[at - 1]])


class SameSpeaker(OnSamples):
    """Sounds of several speakers: every two of one speaker in a batch are to be nearer than the first is to any other
    speaker's (InfoNCE, arXiv:1807.03748, of every such pair).

    A sound whose speaker has no other in the batch is compared with nothing. Metrics: `eer`, the equal error rate of
    all pairs of sounds, by the cosine of their embeddings, and `threshold`, the cosine that it is had at.
    """

    loss, metric, higher_is_better = "contrastive", "eer", False
    separable = False  # the others of the batch are a sound's negatives

    def __init__(self, data: Inputs, speakers: NDArray[np.int64], temperature: float) -> None:
        self.data, self.speakers, self.temperature = data, speakers, temperature

    def _same(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs of these sounds are two of one speaker, `[rows, rows]`."""
        own = self.speakers[rows]
        return (own[:, None] == own) & ~np.eye(len(rows), dtype=np.bool_)

    def weight(self, rows: NDArray[np.int64]) -> float:
        return float(self._same(rows).any(1).sum()) or 1.0

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        same = self._same(rows)
        anchors, positives = (np.atleast_1d(x).astype(np.int64) for x in np.nonzero(same))
        counts = same.sum(1)
        weight = 1.0 / (np.maximum(counts, 1)[anchors] * total)
        if not len(anchors):
            anchors, positives, weight = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1)
        pairs = np.arange(len(anchors))
        excluded = same[anchors]
        excluded[pairs, anchors] = True
        excluded[pairs, positives] = False
        return {
            "anchors": anchors,
            "positives": positives,
            "bias_mask": np.where(excluded, NO_CANDIDATE, np.float32(0)),
            "loss_weight": weight.astype(np.float32),
            "inverse_temperature": np.asarray(1.0 / self.temperature, np.float32),
        }

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        embeddings, numbers = np.concatenate(outputs).astype(np.float64), np.concatenate(rows)
        if len(numbers) > _MOST_COMPARED:
            kept = np.linspace(0, len(numbers) - 1, _MOST_COMPARED).astype(np.int64)
            embeddings, numbers = embeddings[kept], numbers[kept]
        similarity, same = embeddings @ embeddings.T, self._same(numbers)
        above = np.triu_indices(len(numbers), 1)
        rate, threshold = equal_error_rate(similarity[above], same[above])
        return {"loss": self._loss(similarity, same), "eer": rate, "threshold": threshold}

    def _loss(self, similarity: Doubles, same: NDArray[np.bool_]) -> float:
        """The loss of all sounds in one batch."""
        anchors, positives = np.nonzero(same)
        if not len(anchors):
            return float("nan")
        z = similarity / self.temperature
        others = np.where(same | np.eye(len(z), dtype=np.bool_), -np.inf, z)
        rest = log_sum_exp(np.where(np.isfinite(others).any(1, keepdims=True), others, -1e9))
        own = z[anchors, positives]
        nll = np.logaddexp(own, rest[anchors]) - own
        weight = 1.0 / same.sum(1)[anchors]
        return float((weight * nll).sum() / same.any(1).sum())
