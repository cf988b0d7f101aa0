"""A loss of the caller's: its derivatives with respect to the outputs are fed to the training graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConfigError
from edgelora.manifest import Manifest
from edgelora.objectives.base import Array, Feeds, Inputs, Judge, OnSamples

LossFunction = Callable[[Mapping[str, Array], NDArray[np.int64]], tuple[float, Mapping[str, Array]]]


class OwnLoss(OnSamples):
    """Any loss that the caller can differentiate with respect to the model's outputs (docs/tutorial.md).

    `function(outputs, rows)` takes the forward graph's outputs for these samples and returns their
    summed loss and its gradient with respect to each output that it depends on, in the outputs' shapes.
    The trainer divides both by the number of samples in the batch.
    """

    loss, metric, higher_is_better = "cotangent", "loss", False
    separable = False  # the caller's function need not bear several threads

    def __init__(self, data: Inputs, function: LossFunction) -> None:
        self.data, self.function = data, function

    def judge(self, manifest: Manifest, graphs: str) -> Judge:
        return Judge(None, tuple(spec.name for spec in manifest.outputs))

    def cotangents(self, outputs: Mapping[str, Array], rows: NDArray[np.int64], total: float) -> tuple[float, Feeds]:
        """The mean loss's share of these samples, and the feeds `cotangent.NAME` for every output."""
        loss, gradients = self.function(outputs, rows)
        feeds: Feeds = {}
        for name, output in outputs.items():
            gradient = np.asarray(gradients.get(name, np.zeros(output.shape)), np.float32)
            if gradient.shape != output.shape:
                raise ConfigError(f"the loss's gradient for {name!r} has shape {gradient.shape}, not {output.shape}")
            feeds[f"cotangent.{name}"] = gradient / np.float32(total)
        return loss / total, feeds

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        raise ConfigError("a loss of your own has no metrics here: evaluate the model's outputs yourself")
