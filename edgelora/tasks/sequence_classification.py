"""A label for each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgelora.inputs import TokenInputs
from edgelora.objectives import Classification, balanced_weights
from edgelora.records import Record, label_field, text_field
from edgelora.samples import Sample, label_index
from edgelora.tasks.classes import named_classes, scored_classes
from edgelora.tasks.text import TextTask, text_encoder
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


@dataclass(frozen=True)
class TextSample:
    """A text and its label."""

    text: str
    label: str

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,)

    @property
    def stratum(self) -> str:
        return self.label

    def record(self) -> Any:
        return astuple(self)


class SequenceClassification(TextTask):
    """Cross-entropy of a label per text."""

    name: ClassVar[str] = "sequence-classification"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    fields: ClassVar[tuple[str, ...]] = ("text", "label")
    has_classes: ClassVar[bool] = True

    def sample(self, record: Record, beside: Path) -> TextSample:
        return TextSample(text_field(record, "text"), label_field(record))

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Classification:
        encoder, texts = text_encoder(model), [s for s in samples if isinstance(s, TextSample)]
        index = label_index(texts, labels)
        y = np.asarray([index[s.label] for s in texts], np.int64)
        inputs = TokenInputs(encoder, encoder.tokens([s.text for s in texts]))
        return Classification(inputs, y, balanced_weights(y, len(index)) if config.class_weight else None)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[Any]:
        return named_classes(*model.answer(inputs, adapter, adapters))

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        scored = scored_classes(*model.answer(inputs, adapter, adapters))
        return [{"text": text, **one} for text, one in zip(inputs, scored, strict=True)]
