"""A trainer on samples drawn at random: what a bundle trains on where there are no data, to measure a step by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter, new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.inputs import ArrayInputs
from edgelora.language.objective import LanguageModeling
from edgelora.language.packing import row_of
from edgelora.manifest import TrainingGraph
from edgelora.objectives import Array, Classification, Feeds, Objective, OwnLoss, Pairs, Regression, TokenClassification
from edgelora.parity import parity_samples
from edgelora.tasks import task_named
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig

CLASSES = 10
_DROPOUT, _RATE = 0.1, 1e-6
_COLUMNS = {"contrastive": ("anchor", "positive"), "triplet": ("anchor", "positive", "negative")}


def drawn_inputs(bundle: Bundle, rows: int, length: int, rng: np.random.Generator) -> Feeds:
    """Inputs of the bundle: the first dynamic dimension is the batch, the others have `length`.

    Whole numbers are drawn from the bundle's own samples: they are indices into tables.
    """
    sample = parity_samples(bundle)[0][0]
    feeds: Feeds = {}
    for spec in bundle.manifest.inputs:
        shape = [d if isinstance(d, int) else (rows if axis == 0 else length) for axis, d in enumerate(spec.shape)]
        if spec.dtype.startswith("float"):
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif "mask" in spec.name or spec.dtype == "bool":
            feeds[spec.name] = np.ones(shape, spec.dtype)
        else:
            feeds[spec.name] = rng.choice(sample[spec.name].ravel(), shape).astype(spec.dtype)
    return feeds


def drawn_adapter(bundle: Bundle, rank: int, seed: int, dropout: float = 0.0) -> Adapter:
    """A fresh adapter at every point that can be trained, with a head of ten classes or one number."""
    labels = tuple(f"class {i}" for i in range(CLASSES)) if task_named(bundle.manifest.task).has_classes else None
    targets = tuple(point.id for point in bundle.manifest.trainable) if bundle.manifest.lost else None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=targets)
    return new_adapter(bundle.manifest, config, labels, outputs=1, rng=np.random.default_rng(seed))


def drawn_trainer(
    bundle: Bundle, record: TrainingGraph, batch_size: int, length: int, rank: int, micro_batch_size: int | None = None
) -> Trainer:
    """A trainer of this training graph on one batch of samples, `[batch_size, length]`; `trainer.step` is a step.

    Raises:
        ConfigError: the graph cannot be trained so: it does not reach a point, or cannot be cut into parts.
    """
    rng = np.random.default_rng(0)
    adapter = drawn_adapter(bundle, rank, 0, _DROPOUT if record.dropout else 0.0)
    objective = _objective(bundle, record, batch_size, length, rng)
    config = TrainingConfig(
        num_train_epochs=1,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        learning_rate=_RATE,
        lr_scheduler_type="constant",
        cache=None,
    )
    return Trainer(bundle, adapter, objective, config)


def _objective(bundle: Bundle, record: TrainingGraph, rows: int, length: int, rng: np.random.Generator) -> Objective:
    """The task's own, with random labels; half the square of the outputs where the caller brings the loss."""

    def data() -> ArrayInputs:
        return ArrayInputs(drawn_inputs(bundle, rows, length, rng))

    if record.loss == "cotangent":
        return OwnLoss(data(), _half_square)
    if record.loss in _COLUMNS:
        return Pairs({column: data() for column in _COLUMNS[record.loss]}, record.loss)
    if record.loss == "mse":
        return Regression(data(), rng.standard_normal((rows, 1), np.float32))
    if bundle.manifest.language is not None:
        ids = rng.integers(0, bundle.manifest.language.vocabulary, (rows, length + 1))
        return LanguageModeling([row_of(row[:-1], row[1:], np.ones(length, np.bool_), length) for row in ids])
    if bundle.manifest.task == "token-classification":
        inputs = data()
        width: int = next(iter(inputs.arrays.values())).shape[1]
        return TokenClassification(inputs, [rng.integers(0, CLASSES, width) for _ in range(rows)])
    return Classification(data(), rng.integers(0, CLASSES, rows))


def _half_square(outputs: Mapping[str, Array], rows: NDArray[np.int64]) -> tuple[float, Mapping[str, Array]]:
    """½·Σ y² and its gradient, y."""
    real: dict[str, Any] = {name: y for name, y in outputs.items() if y.dtype.kind == "f"}
    return sum(0.5 * float((y * y).sum()) for y in real.values()), real
