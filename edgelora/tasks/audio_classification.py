"""A label for each sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from edgelora.media.sound_inputs import SoundInputs
from edgelora.samples import Sample
from edgelora.tasks.classes import ClassificationTask
from edgelora.tasks.sound import SoundSample, SoundTask, sound_inputs
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import Model


class AudioClassification(ClassificationTask, SoundTask):
    """Cross-entropy of a label per sound."""

    name: ClassVar[str] = "audio-classification"

    def inputs_of(self, model: Model, samples: Sequence[Sample], config: TrainingConfig) -> SoundInputs:
        return sound_inputs(model, [s for s in samples if isinstance(s, SoundSample)], config)
