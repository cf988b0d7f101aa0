"""A label for each input, whatever it is; from logits to classes, by the labels of each row's adapter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgelora.objectives import Array, Classification, Inputs, balanced_weights
from edgelora.samples import Sample, label_index
from edgelora.tasks.base import Task, shown_input
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


class ClassificationTask(Task):
    """Cross-entropy of one label per sample. The first of the `fields` holds the input, and results begin with it."""

    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    has_classes: ClassVar[bool] = True

    @abstractmethod
    def inputs_of(self, model: Model, samples: Sequence[Sample], config: TrainingConfig) -> Inputs:
        """The samples' inputs as a data set."""

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Classification:
        inputs, index = self.inputs_of(model, samples, config), label_index(samples, labels)
        y = np.asarray([index[s.labels[0]] for s in samples], np.int64)
        return Classification(inputs, y, balanced_weights(y, len(index)) if config.class_weight else None)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[Any]:
        return named_classes(*model.answer(inputs, adapter, adapters))

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        scored = scored_classes(*model.answer(inputs, adapter, adapters))
        return [{self.fields[0]: shown_input(raw), **one} for raw, one in zip(inputs, scored, strict=True)]


def probabilities(logits: Array) -> NDArray[np.float64]:
    """softmax along the last axis."""
    z = logits.astype(np.float64)
    exp = np.exp(z - z.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def named_classes(outputs: Mapping[str, Array], labels: Sequence[tuple[str, ...] | None]) -> list[Any]:
    """The best class of each row, or of each of its places: its label, or its number where the adapter has none."""
    best = outputs["logits"].argmax(-1)
    return [_named(b, names) for b, names in zip(best, labels, strict=True)]


def scored_classes(
    outputs: Mapping[str, Array], labels: Sequence[tuple[str, ...] | None]
) -> list[dict[str, str | int | float]]:
    """The best class of each row with its probability: `label` and `score`."""
    scores = probabilities(outputs["logits"]).max(-1)
    named = named_classes(outputs, labels)
    return [{"label": label, "score": round(float(s), 4)} for label, s in zip(named, scores, strict=True)]


def _named(best: Any, labels: tuple[str, ...] | None) -> Any:
    if labels is None:
        return best.tolist()
    if np.ndim(best) == 0:
        return labels[int(best)]
    return [labels[int(i)] for i in best]
