"""Direct preference optimisation (DPO, arXiv:2305.18290): what is to be said becomes likelier than what is not.

With log π(y) = −Σ nll of a completion's tokens and log ρ(y) the base's own, the loss of a pair is

    L = −log σ(m),  m = β·((log π(y_chosen) − log ρ(y_chosen)) − (log π(y_rejected) − log ρ(y_rejected))).

The score graph tells log π; dL/d(nll) = ±β·σ(−m) at every token of the two is what the training graph takes as the
weights of its losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.language.objective import counted_losses, token_judge
from edgelora.language.packing import Row, RowInputs
from edgelora.manifest import Manifest
from edgelora.objectives import Array, Feeds, Judge, OnSamples

Rows = NDArray[np.int64]
Doubles = NDArray[np.float64]


class DirectPreference(OnSamples):
    """DPO of pairs of rows, the chosen one first: a batch holds the chosen rows of its samples, then the rejected ones.

    `base(feeds)` tells the base's losses of the tokens `[rows, tokens]`, and is asked once for every pair. `beta` is
    how dear it is to leave the base. Metrics: `loss`, `accuracy`, the share of pairs whose chosen row gained more than
    the rejected one on the base, and `margin`, the mean of m.
    """

    loss, metric, higher_is_better = "cross-entropy", "loss", False

    def __init__(
        self, pairs: Sequence[tuple[Row, Row]], base: Callable[[Feeds], Array], beta: float, padding: int = 0
    ) -> None:
        self.beta, self._base, self._count = beta, base, len(pairs)
        self._rows = RowInputs([pair[side] for side in (0, 1) for pair in pairs], padding)
        self._reference = np.full((len(pairs), 2), np.nan)

    def __len__(self) -> int:
        return self._count

    def lengths(self) -> Rows:
        return self._rows.lengths().reshape(2, -1).max(0)

    def inputs(self, rows: Rows) -> Feeds:
        both = self._both(rows)
        return {**self._rows.feeds(both), "labels": self._rows.labels(both)}

    def judge(self, manifest: Manifest, graphs: str) -> Judge:
        return token_judge(manifest, graphs)

    def of_epoch(self, epoch: int) -> DirectPreference:
        return self

    def examine(self) -> None:
        """Nothing is read from files."""

    def cotangents(self, outputs: Mapping[str, Array], rows: Rows, total: float) -> tuple[float, Feeds]:
        (made,) = outputs.values()
        margins = self._margins(self._gains(made, rows))
        slope = self.beta * np.exp(-np.logaddexp(0.0, margins)) / total
        weight = self._rows.counted(self._both(rows)) * np.concatenate([slope, -slope])[:, None]
        return float(np.logaddexp(0.0, -margins).sum() / total), {"loss_weight": weight.astype(np.float32)}

    def measured(self, outputs: Array, rows: Rows) -> Array:
        """For each pair what both gained on the base, in nats."""
        return self._gains(outputs, rows)

    def metrics(self, outputs: Sequence[Array], rows: Sequence[Rows]) -> dict[str, float]:
        margins = self._margins(np.concatenate(outputs).astype(np.float64))
        loss = float(np.logaddexp(0.0, -margins).mean())
        return {"loss": loss, "accuracy": float((margins > 0).mean()), "margin": float(margins.mean())}

    def _both(self, rows: Rows) -> Rows:
        """The numbers of the chosen rows, then of the rejected ones."""
        return np.concatenate([rows, rows + self._count])

    def _margins(self, gains: Doubles) -> Doubles:
        return self.beta * (gains[:, 0] - gains[:, 1])

    def _gains(self, outputs: Array, rows: Rows) -> Doubles:
        """log π − log ρ of both of each pair, `[pairs, 2]`."""
        for new in rows[np.isnan(self._reference[rows, 0]), None]:  # each alone: the same bits whatever the batch
            self._reference[new] = self._likelihoods(self._base(self.inputs(new)), new)
        return self._likelihoods(outputs, rows) - self._reference[rows]

    def _likelihoods(self, outputs: Array, rows: Rows) -> Doubles:
        """log p of both of each pair, `[pairs, 2]`."""
        return -counted_losses(outputs, self._rows, self._both(rows)).sum(1).reshape(2, -1).T
