"""A label for each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgelora.inputs import TokenInputs
from edgelora.records import Record, label_field, text_field
from edgelora.samples import OneLabel, Sample
from edgelora.tasks.classes import ClassificationTask
from edgelora.tasks.text import TextTask, text_encoder
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import Model


@dataclass(frozen=True)
class TextSample(OneLabel):
    """A text and its label."""

    text: str
    label: str

    def record(self) -> Any:
        return astuple(self)


class SequenceClassification(ClassificationTask, TextTask):
    """Cross-entropy of a label per text."""

    name: ClassVar[str] = "sequence-classification"
    fields: ClassVar[tuple[str, ...]] = ("text", "label")

    def sample(self, record: Record, beside: Path) -> TextSample:
        return TextSample(text_field(record, "text"), label_field(record))

    def inputs_of(self, model: Model, samples: Sequence[Sample], config: TrainingConfig) -> TokenInputs:
        encoder = text_encoder(model)
        return TokenInputs(encoder, encoder.tokens([s.text for s in samples if isinstance(s, TextSample)]))
