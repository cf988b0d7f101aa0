"""What a task asks of a batch: the loss inputs to feed, and the metrics to report.

Every loss is Σ w_i·l_i with the weights fed by the host, so the mean over the effective batch, class
weights and padding are all one array, and accumulating micro-batches is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConfigError
from edgelora.manifest import Manifest

Array = NDArray[np.generic]
Floats = NDArray[np.float32]
Feeds = dict[str, "Array"]

NO_CANDIDATE = np.float32(-1e9)


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
    separable = True

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


class Pairs:
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

    @property
    def separable(self) -> bool:
        return self.loss == "triplet"  # else the others of the batch are an anchor's negatives

    def __len__(self) -> int:
        return len(self.columns[0])

    def lengths(self) -> NDArray[np.int64]:
        return np.max([column.lengths() for column in self.columns], axis=0)

    def weight(self, rows: NDArray[np.int64]) -> float:
        return float(len(rows))

    def judge(self, manifest: Manifest, graphs: str) -> Judge:
        return first_output(manifest)

    def measured(self, outputs: Array, rows: NDArray[np.int64]) -> Array:
        return outputs

    def inputs(self, rows: NDArray[np.int64]) -> Feeds:
        return stack([column.feeds(rows) for column in self.columns])

    def of_epoch(self, epoch: int) -> Self:
        return self

    def examine(self) -> None:
        for column in self.columns:
            if isinstance(column, FileInputs):
                column.examine()

    def feeds(self, rows: NDArray[np.int64], total: float) -> Feeds:
        return self.inputs(rows) | self.loss_inputs(rows, total)

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


def log_sum_exp(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """log Σ exp(z) along the last axis."""
    peak = z.max(-1, keepdims=True)
    return np.log(np.exp(z - peak).sum(-1)) + peak[..., 0]


def stack(parts: Sequence[Feeds]) -> Feeds:
    """Feeds of several batches as one, padded with zeros to the widest (token 0 is masked out)."""
    joined: Feeds = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        widest = [max(a.shape[axis] for a in arrays) for axis in range(1, arrays[0].ndim)]
        padded = [np.pad(a, [(0, 0), *((0, w - s) for w, s in zip(widest, a.shape[1:], strict=True))]) for a in arrays]
        joined[name] = np.concatenate(padded)
    return joined


def balanced_weights(labels: NDArray[np.int64], classes: int) -> Floats:
    """n/(k·n_c) for each class c (scikit-learn's class_weight="balanced"); 1 for a class without samples."""
    return balanced_by_count(np.bincount(labels, minlength=classes))


def balanced_by_count(counts: NDArray[np.int64]) -> Floats:
    """`balanced_weights` of labels of which there are so many in each class, `[classes]`."""
    whole = counts.sum() / len(counts)
    return np.where(counts > 0, whole / np.maximum(counts, 1), 1.0).astype(np.float32)
