"""What an objective is, and what objectives on one data set share.

Every loss is Σ w_i·l_i with the weights fed by the host, so the mean over the effective batch, class
weights and padding are all one array, and accumulating micro-batches is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgelora.manifest import Manifest

Array = NDArray[np.generic]
Floats = NDArray[np.float32]
Feeds = dict[str, "Array"]


@runtime_checkable
class Inputs(Protocol):
    """Model inputs of a data set."""

    def __len__(self) -> int: ...

    def lengths(self) -> NDArray[np.int64]:
        """The size of each sample along the padded dimension."""
        ...

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        """The graph inputs of these samples, padded to the longest."""
        ...


@runtime_checkable
class FileInputs(Inputs, Protocol):
    """Model inputs that are read from files when they are asked for."""

    def of_epoch(self, epoch: int) -> Inputs:
        """Those of an epoch of training, from 0, themselves unless they are varied: a function of what the inputs were
        made with and the epoch alone.
        """
        ...

    def examine(self) -> None:
        """Read every file once. Raises DataError with the first that cannot be read."""
        ...


@dataclass(frozen=True)
class Judge:
    """The outputs that tell how good an adapter is, and the graph that makes them.

    `file` None is the inference graph of the adapter's method, or what of it comes after a frozen prefix.
    """

    file: str | None
    outputs: tuple[str, ...]


class Objective(Protocol):
    """A data set with its targets, as the loss graph `loss` wants them."""

    loss: str
    higher_is_better: bool
    metric: str

    @property
    def separable(self) -> bool:
        """Whether the loss of a batch is the sum of those of its parts, which may be computed at once."""
        ...

    def __len__(self) -> int: ...

    def lengths(self) -> NDArray[np.int64]: ...

    def weight(self, rows: NDArray[np.int64]) -> float:
        """The sum of the unnormalised weights of these samples."""
        ...

    def feeds(self, rows: NDArray[np.int64], total: float) -> Feeds:
        """Model inputs and loss inputs."""
        ...

    def inputs(self, rows: NDArray[np.int64]) -> Feeds:
        """Model inputs, and what else the judge takes."""
        ...

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        """Loss inputs alone; weights are divided by `total`."""
        ...

    def judge(self, manifest: Manifest, graphs: str) -> Judge:
        """What adapters of the set of graphs `graphs` are judged by."""
        ...

    def measured(self, outputs: Array, rows: NDArray[np.int64]) -> Array:
        """What the metrics need of the judge's outputs for these samples: less than these if they are large."""
        ...

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        """Metrics of what was `measured`, batch by batch."""
        ...

    def of_epoch(self, epoch: int) -> Objective:
        """What an epoch of training, from 0, is to learn from: itself, or its samples varied.

        The objective as it is has the samples as they are: it is what an evaluation reads.
        """
        ...

    def examine(self) -> None:
        """Read once what a training is going to read from files. Raises DataError with the first that cannot be."""
        ...


@runtime_checkable
class HostLoss(Protocol):
    """An objective whose loss the host computes from the judge's outputs; the training graph takes its derivatives."""

    def cotangents(self, outputs: Mapping[str, Array], rows: NDArray[np.int64], total: float) -> tuple[float, Feeds]:
        """These samples' share of the loss, and what the training graph is fed of its derivatives."""
        ...


def is_augmented(objective: Objective) -> bool:
    """Whether each epoch of training has other inputs."""
    return objective.of_epoch(0) is not objective


def first_output(manifest: Manifest) -> Judge:
    """The judge of most: the first output of the inference graph."""
    return Judge(None, (manifest.outputs[0].name,))


class OnSamples:
    """What objectives on one data set share: every sample counts one unless an objective weighs it."""

    data: Inputs
    separable: bool = True

    def __len__(self) -> int:
        return len(self.data)

    def lengths(self) -> NDArray[np.int64]:
        return self.data.lengths()

    def weight(self, rows: NDArray[np.int64]) -> float:
        return float(len(rows))

    def feeds(self, rows: NDArray[np.int64], total: float) -> Feeds:
        return self.inputs(rows) | self.loss_inputs(rows, total)

    def inputs(self, rows: NDArray[np.int64]) -> Feeds:
        return self.data.feeds(rows)

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        return {}

    def judge(self, manifest: Manifest, graphs: str) -> Judge:
        return first_output(manifest)

    def measured(self, outputs: Array, rows: NDArray[np.int64]) -> Array:
        return outputs

    def of_epoch(self, epoch: int) -> Self:
        data = self.data.of_epoch(epoch) if isinstance(self.data, FileInputs) else self.data
        if data is self.data:
            return self
        varied = copy(self)
        varied.data = data
        return varied

    def examine(self) -> None:
        if isinstance(self.data, FileInputs):
            self.data.examine()
