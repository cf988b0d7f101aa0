"""Mean squared error of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.objectives.base import Array, Feeds, Floats, Inputs, OnSamples


class Regression(OnSamples):
    """Mean squared error of a number, or a vector, per sample; `targets` `[samples, outputs]`."""

    loss, metric, higher_is_better = "mse", "mse", False

    def __init__(self, data: Inputs, targets: Floats) -> None:
        self.data, self.targets = data, targets.astype(np.float32)

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        weight = np.full(len(rows), 1.0 / total, np.float32)
        return {"targets": self.targets[rows], "loss_weight": weight}

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        predicted = np.concatenate(outputs).astype(np.float64)
        error = predicted - self.targets[np.concatenate(rows)]
        mse = float((error**2).mean())
        return {"loss": mse, "mse": mse, "mae": float(np.abs(error).mean())}
