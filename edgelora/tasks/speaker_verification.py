"""A vector for each sound, near those of its speaker's other sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgelora.errors import ConfigError, DataError
from edgelora.objectives import Array
from edgelora.samples import Sample, labels_of
from edgelora.tasks.base import shown_input
from edgelora.tasks.sound import SoundSample, SoundTask, sound_inputs
from edgelora.training_config import TrainingConfig
from edgelora.verification import SameSpeaker

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


class SpeakerVerification(SoundTask):
    """Contrastive loss of embeddings of length 1, `[rows, features]`; the labels are the speakers.

    The speakers that it learns from need not be those that it will tell apart: `voices.py` enrols any.
    """

    name: ClassVar[str] = "speaker-verification"
    losses: ClassVar[tuple[str, ...]] = ("contrastive",)

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> SameSpeaker:
        sounds = [s for s in samples if isinstance(s, SoundSample)]
        if config.micro_batch_size is not None:
            raise ConfigError(
                "micro_batch_size cannot split the contrastive loss, which compares all samples of a batch: make "
                "batch_size smaller"
            )
        speakers = labels_of(sounds)
        if len(speakers) < 2:
            raise DataError(
                f"the sounds have {len(speakers)} speaker ({', '.join(speakers)}): to tell speakers apart takes two"
            )
        numbers = np.asarray([speakers.index(s.label) for s in sounds], np.int64)
        if np.bincount(numbers).max() < 2:
            raise DataError("every speaker has one sound: what makes two sounds one speaker's takes two of some")
        return SameSpeaker(sound_inputs(model, sounds, config), numbers, config.temperature)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> Array:
        return model.outputs(inputs, adapter, adapters)["embedding"]

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        embeddings = self.predict(model, inputs, adapter, adapters)
        return [{"audio": shown_input(s), "embedding": e.tolist()} for s, e in zip(inputs, embeddings, strict=True)]
