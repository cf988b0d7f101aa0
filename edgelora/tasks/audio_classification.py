"""A label for each sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgelora.objectives import Classification, balanced_weights
from edgelora.samples import Sample, label_index
from edgelora.tasks.classes import named_classes, scored_classes
from edgelora.tasks.sound import SoundSample, SoundTask, shown_sound, sound_inputs
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


class AudioClassification(SoundTask):
    """Cross-entropy of a label per sound."""

    name: ClassVar[str] = "audio-classification"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    has_classes: ClassVar[bool] = True

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Classification:
        sounds = [s for s in samples if isinstance(s, SoundSample)]
        index = label_index(sounds, labels)
        y = np.asarray([index[s.label] for s in sounds], np.int64)
        inputs = sound_inputs(model, sounds, config)
        return Classification(inputs, y, balanced_weights(y, len(index)) if config.class_weight else None)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[Any]:
        return named_classes(*model.answer(inputs, adapter, adapters))

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        scored = scored_classes(*model.answer(inputs, adapter, adapters))
        return [{"audio": shown_sound(sound), **one} for sound, one in zip(inputs, scored, strict=True)]
