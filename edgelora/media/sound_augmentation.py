"""Sounds as they might have been recorded: louder, later, with noise; drawn from seed, epoch and sample alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelora.media.sound import SoundSettings, filled, loudest
from edgelora.media.wav import Samples

SOUND_KINDS = ("gain", "shift", "noise")
_GAIN = (-6.0, 6.0)  # dB
_NOISE = (15.0, 40.0)  # dB below the sound


def augmented(
    samples: Samples, settings: SoundSettings, kinds: Sequence[str], seed: int, epoch: int, number: int
) -> Samples:
    """The window `[settings.samples]` of a sound at the model's rate, changed; of each sample another in each epoch.

    gain: 6 dB louder to 6 dB softer. shift: any window of a longer sound, and a shorter one at any place of the
    window. noise: white, 15 to 40 dB below the sound.
    """
    rng = np.random.default_rng([seed, epoch, number])
    place, gain, below = rng.random(), rng.uniform(*_GAIN), rng.uniform(*_NOISE)
    window = _shifted(samples, settings, place) if "shift" in kinds else _still(samples, settings)
    if "noise" in kinds:
        effective = float(np.sqrt(np.mean(window.astype(np.float64) ** 2)))
        noise = rng.standard_normal(len(window), np.float32)
        window = window + noise * np.float32(effective * 10 ** (-below / 20))
    return window * np.float32(10 ** (gain / 20)) if "gain" in kinds else window


def _still(samples: Samples, settings: SoundSettings) -> Samples:
    return loudest(samples, settings.samples, settings.fill)


def _shifted(samples: Samples, settings: SoundSettings, place: float) -> Samples:
    """The window at `place`, from 0, the earliest, to 1."""
    size = settings.samples
    if len(samples) > size:
        start = int(place * (len(samples) - size + 1))
        return samples[start : start + size]
    if settings.fill == "repeat":
        return np.roll(filled(samples, size, settings.fill), int(place * len(samples)))
    before = int(place * (size - len(samples) + 1))
    return np.pad(samples, (before, size - len(samples) - before))
