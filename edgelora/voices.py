"""Who speaks: voices are enrolled as mean embeddings, and a sound is the nearest one's, if it is near enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter
from edgelora.errors import ConfigError, DataError
from edgelora.media.sound import SoundLike
from edgelora.runtime import AdapterLike, Model
from edgelora.tasks.sound import SoundSample
from edgelora.tasks.speaker_verification import SpeakerVerification

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Voices:
    """Enrolled speakers: `embeddings` `[names, features]` of length 1, of one base with one adapter or none."""

    names: tuple[str, ...]
    embeddings: Floats


@dataclass(frozen=True)
class Match:
    """The enrolled speaker that a sound is nearest to, the cosine of the two, and whether that is near enough.

    `accepted` is None where no threshold was given.
    """

    nearest: str
    score: float
    accepted: bool | None

    @property
    def speaker(self) -> str | None:
        """Who it is, or None for somebody else."""
        return None if self.accepted is False else self.nearest


def enrol(model: Model, sounds: Sequence[tuple[str, SoundLike]], adapter: AdapterLike = None) -> Voices:
    """The voices of these speakers, by name, each the mean of the embeddings of its sounds.

    Raises:
        ConfigError: the bundle is not one of speaker verification. DataError: no sounds, or one cannot be read.
        StoreError, AdapterError: as `Model.predict`.
    """
    _check_task(model)
    if not sounds:
        raise DataError("there are no sounds to enrol")
    embeddings = np.asarray(model.predict([sound for _, sound in sounds], adapter))
    names = tuple(dict.fromkeys(name for name, _ in sounds))
    means = np.stack([embeddings[[own == name for own, _ in sounds]].mean(0) for name in names])
    return Voices(names, means / np.linalg.norm(means, axis=1, keepdims=True))


def recognise(
    model: Model,
    sounds: Sequence[SoundLike],
    voices: Voices,
    adapter: AdapterLike = None,
    threshold: float | None = None,
) -> list[Match]:
    """For each sound the nearest voice, accepted if the cosine is at least the threshold.

    The adapter must be the one that the voices were enrolled with. `threshold_of` tells what its training found.

    Raises:
        As `enrol`.
    """
    _check_task(model)
    scores: Floats = np.asarray(model.predict(list(sounds), adapter), np.float32) @ voices.embeddings.T
    matches: list[Match] = []
    for row in scores:
        at = int(row.argmax())
        score = float(row[at])
        matches.append(Match(voices.names[at], score, None if threshold is None else score >= threshold))
    return matches


def threshold_of(adapter: Adapter) -> float | None:
    """The threshold of the equal error rate on the validation samples of the adapter's training; None without them."""
    history, best = adapter.training.get("history", []), adapter.training.get("best_epoch")
    of_best = [epoch for epoch in history if best is None or epoch.get("epoch") == best]
    found = of_best[-1].get("eval_threshold") if of_best else None
    return None if found is None or not np.isfinite(found) else float(found)


def read_voices(path: str | Path) -> list[tuple[str, Path]]:
    """The sounds to enrol: a wav file, named as the file is, or what the task reads (`FOLDER/name/file.wav`).

    Raises:
        DataError: there are none.
    """
    if Path(path).suffix.lower() == ".wav" and "{label}" not in str(path):
        return [(Path(path).stem, Path(path))]
    return [(s.label, s.path) for s in SpeakerVerification().read(path) if isinstance(s, SoundSample)]


def _check_task(model: Model) -> None:
    if model.bundle.manifest.task != SpeakerVerification.name:
        raise ConfigError(f"voices are of the task {SpeakerVerification.name}, and this bundle's is {model.task.name}")
