"""From sounds to a bundle's graph input: files are read batch by batch, and features kept as far as there is room."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import BundleError, DataError
from edgelora.manifest import TensorSpec
from edgelora.media.sound import SoundLike, SoundSettings, heard, loudest, sound_problem
from edgelora.media.sound_augmentation import augmented
from edgelora.media.wav import Samples, Sound, read_wav
from edgelora.objectives import Array, Feeds
from edgelora.records import first_of
from edgelora.session import Graph, SessionSettings

KEPT_BYTES = 64 << 20


class SoundEncoder:
    """Makes the graph's input of sounds: wav files, their bytes, or `Sound`s. `settings` are the manifest's."""

    takes = "sounds"

    def __init__(self, folder: Path, preprocessing: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> None:
        """For the bundle in `folder`, whose graphs take `inputs`.

        Raises:
            BundleError: the settings are malformed, or name an input that the bundle does not have.
        """
        self.settings = SoundSettings.of(preprocessing, str(folder))
        self._folder = folder
        if [spec.name for spec in inputs] != [self.settings.input]:
            raise BundleError(f"{folder}: preprocessing: the graphs take other inputs than {self.settings.input!r}")

    def inputs(self, raw: Sequence[Any]) -> SoundInputs:
        """The graph input of these sounds, made batch by batch.

        Raises:
            DataError: one is no sound.
        """
        wrong = [sound for sound in raw if not isinstance(sound, str | Path | bytes | Sound)]
        if wrong:
            raise DataError(f"predict takes wav files, their bytes or Sounds; {wrong[0]!r} is none")
        return SoundInputs(self, cast("Sequence[SoundLike]", raw))

    def features(self, window: Samples) -> Array:
        """The graph's input, without the batch, of a window `[samples]` at the model's rate."""
        scaled = (window * np.float32(self.settings.scale))[None]
        if self._graph is None:
            return scaled[0]
        name, output = next(iter(self._graph.inputs)), self._graph.outputs[0]
        return self._graph.run({name: scaled}, [output])[output][0]

    @cached_property
    def _graph(self) -> Graph | None:
        """The graph of the features, on one core: it is small, and cores have sounds of their own."""
        file = self.settings.features
        return None if file is None else Graph(self._folder / file, SessionSettings(threads=1))


class SoundInputs:
    """The sounds of a data set. Up to 64 MB of what was computed of them is kept.

    With `augment`, an epoch's sounds are varied, each in a way drawn from `seed`, epoch and sample.
    """

    def __init__(
        self, encoder: SoundEncoder, sounds: Sequence[SoundLike], augment: Sequence[str] = (), seed: int = 0
    ) -> None:
        self.encoder, self.sounds = encoder, tuple(sounds)
        self.augment, self.seed = tuple(augment), seed
        self._kept: dict[int, Array] = {}
        self._room, self._lock = KEPT_BYTES, threading.Lock()

    def __len__(self) -> int:
        return len(self.sounds)

    def lengths(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        """The graph's input of these sounds.

        Raises:
            DataError: one cannot be read, is silent, or has a rate that the bundle does not take; it is named.
        """
        return {self.encoder.settings.input: np.stack([self._features(row) for row in map(int, rows)])}

    def of_epoch(self, epoch: int) -> SoundInputs | VariedSounds:
        """The sounds as an epoch of training hears them."""
        return VariedSounds(self, epoch) if self.augment else self

    def examine(self) -> None:
        """Read every sound once, and keep nothing.

        Raises:
            DataError: those that cannot be used, by name.
        """
        problems: list[str] = []
        for number, sound in enumerate(self.sounds, 1):
            name = str(sound) if isinstance(sound, str | Path) else f"sound {number}"
            try:
                read = sound if isinstance(sound, Sound) else read_wav(sound, name)
                problem = sound_problem(read, self.encoder.settings)
                problems += [] if problem is None else [f"{name}: {problem}"]
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError(first_of(problems, "such sounds"))

    def _features(self, row: int) -> Array:
        kept = self._kept.get(row)
        if kept is not None:
            return kept
        settings = self.encoder.settings
        samples = heard(self.sounds[row], settings, f"sound {row + 1}")
        made = self.encoder.features(loudest(samples, settings.samples, settings.fill))
        with self._lock:
            if made.nbytes <= self._room and row not in self._kept:
                self._kept[row] = made
                self._room -= made.nbytes
        return made


class VariedSounds:
    """Sounds as one epoch hears them; nothing of them is kept."""

    def __init__(self, sounds: SoundInputs, epoch: int) -> None:
        self._sounds, self._epoch = sounds, epoch

    def __len__(self) -> int:
        return len(self._sounds)

    def lengths(self) -> NDArray[np.int64]:
        return self._sounds.lengths()

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        """The graph's input of these sounds. Raises as that of `SoundInputs`."""
        of, encoder = self._sounds, self._sounds.encoder
        made: list[Array] = []
        for row in map(int, rows):
            samples = heard(of.sounds[row], encoder.settings, f"sound {row + 1}")
            window = augmented(samples, encoder.settings, of.augment, of.seed, self._epoch, row)
            made.append(encoder.features(window))
        return {encoder.settings.input: np.stack(made)}
