"""Samples of a task -> the objective that the trainer asks for batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelora.data import NumberSample, PairSample, Sample, TextSample, TokenSample
from edgelora.errors import ConfigError, DataError
from edgelora.manifest import Manifest
from edgelora.objectives import (
    Array,
    Classification,
    Feeds,
    Objective,
    Pairs,
    Regression,
    TokenClassification,
    balanced_weights,
)
from edgelora.text import IGNORED, TextEncoder
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import Model

# The losses of each task; the first is the one that is taken unless another is asked for.
LOSSES = {
    "sequence-classification": ("cross-entropy",),
    "token-classification": ("cross-entropy",),
    "regression": ("mse",),
    "sentence-embedding": ("contrastive", "triplet"),
}


class TokenInputs:
    """Tokenized texts, padded batch by batch."""

    def __init__(self, encoder: TextEncoder, ids: Sequence[NDArray[np.int64]]) -> None:
        self.encoder, self.ids = encoder, ids

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> NDArray[np.int64]:
        return np.asarray([len(row) for row in self.ids], np.int64)

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        return {**self.encoder.collate([self.ids[int(row)] for row in rows])}


class ArrayInputs:
    """Samples that are rows of arrays, by graph input name."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def lengths(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        return {name: array[rows] for name, array in self.arrays.items()}


def objective_for(
    model: Model, samples: Sequence[Sample], labels: tuple[str, ...] | None, config: TrainingConfig
) -> Objective:
    """The objective of these samples for the model's task.

    Raises:
        DataError: a label that the adapter does not know. ConfigError: the bundle takes no text, or the task has
            no such loss.
    """
    encoder = model.encoder
    if encoder is None:
        raise ConfigError("this bundle takes arrays, not text: build an objective from edgelora.objectives")
    task = model.bundle.manifest.task
    if task not in LOSSES:
        raise ConfigError(f"the task {task} has no loss of its own: build an objective from edgelora.objectives")
    loss = config.loss or LOSSES[task][0]
    if loss not in LOSSES[task]:
        raise ConfigError(f"the task {task} has no loss {loss!r}; it has {', '.join(LOSSES[task])}")
    if task == "sequence-classification":
        texts = [s for s in samples if isinstance(s, TextSample)]
        index = _label_index([s.label for s in texts], labels)
        y = np.asarray([index[s.label] for s in texts], np.int64)
        inputs = TokenInputs(encoder, encoder.tokens([s.text for s in texts]))
        return Classification(inputs, y, balanced_weights(y, len(index)) if config.class_weight else None)
    if task == "token-classification":
        return _token_objective(encoder, [s for s in samples if isinstance(s, TokenSample)], labels, config)
    if task == "regression":
        numbers = [s for s in samples if isinstance(s, NumberSample)]
        widths = {len(s.target) for s in numbers}
        if len(widths) > 1:
            raise DataError(f"the targets have different numbers of values ({', '.join(map(str, sorted(widths)))})")
        targets = np.asarray([s.target for s in numbers], np.float32)
        return Regression(TokenInputs(encoder, encoder.tokens([s.text for s in numbers])), targets)
    pairs = [s for s in samples if isinstance(s, PairSample)]
    columns = {"anchor": [s.anchor for s in pairs], "positive": [s.positive for s in pairs]}
    negatives = [s.negative for s in pairs if s.negative is not None]
    if negatives:
        columns["negative"] = negatives
    if loss == "contrastive" and config.micro_batch_size is not None:
        raise ConfigError(
            "micro_batch_size cannot split the contrastive loss, which compares all samples of a batch: make "
            "batch_size smaller, or take the triplet loss"
        )
    if loss == "triplet" and not negatives:
        raise DataError("the triplet loss needs the field 'negative' in every sample; the contrastive loss does not")
    inputs = {name: TokenInputs(encoder, encoder.tokens(texts)) for name, texts in columns.items()}
    return Pairs(inputs, loss, config.temperature, config.margin)


def outputs_of(manifest: Manifest, samples: Sequence[Sample]) -> int | None:
    """The number of outputs of a regression head, from the data."""
    first = samples[0] if samples else None
    return len(first.target) if manifest.task == "regression" and isinstance(first, NumberSample) else None


def _token_objective(
    encoder: TextEncoder, samples: Sequence[TokenSample], labels: tuple[str, ...] | None, config: TrainingConfig
) -> TokenClassification:
    index = _label_index([label for s in samples for label in s.labels], labels)
    ids, firsts = encoder.words([s.words for s in samples])
    y: list[NDArray[np.int64]] = []
    for sample, first in zip(samples, firsts, strict=True):
        known = np.asarray([index[label] for label in sample.labels], np.int64)
        y.append(np.where(first == IGNORED, IGNORED, known[np.maximum(first, 0)]))
    weights = None
    if config.class_weight:
        flat = np.concatenate(y)
        weights = balanced_weights(flat[flat != IGNORED], len(index))
    return TokenClassification(TokenInputs(encoder, ids), y, weights)


def _label_index(used: Sequence[str], labels: tuple[str, ...] | None) -> dict[str, int]:
    index = {label: i for i, label in enumerate(labels or ())}
    unknown = sorted({label for label in used if label not in index})
    if unknown:
        raise DataError(f"labels that the adapter does not know: {', '.join(unknown)}; it knows {', '.join(index)}")
    return index
