"""What a model hears of a sound: its rate, its loudness, its window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from edgelora.errors import BundleError, DataError
from edgelora.media.resampling import resample
from edgelora.media.wav import RATES, Samples, Sound, read_wav

FILLS = ("zeros", "repeat")
SILENT = 1e-4  # the largest sample of what is nothing but silence: −80 dB
MOST_SAMPLES = 1 << 22  # of a window
SoundLike = str | Path | bytes | Sound


@dataclass(frozen=True)
class SoundSettings:
    """How sounds become the model's input: the manifest's `preprocessing` of kind "audio".

    A sound is brought to `rate` Hz (with `resample` false, another rate is an error), made louder up to an effective
    value of `loudness` dB of full scale if that is given, and cut to the window of `samples` that has the most energy,
    or filled up to it with `fill`: "zeros" behind it, or "repeat". Multiplied by `scale` it is what the graph
    `features` takes as its one input `[batch, samples]`, float32, and makes `input` of; without `features` it is
    `input` itself.
    """

    input: str
    rate: int
    samples: int
    features: str | None = None
    fill: str = "zeros"
    resample: bool = True
    loudness: float | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any], where: str) -> SoundSettings:
        """From the manifest, which errors call `where`; the kind is not looked at.

        Raises:
            BundleError: a setting is missing or malformed.
        """
        if problems := list(setting_problems(preprocessing)):
            raise BundleError(f"{where}: preprocessing: {'; '.join(problems)}; convert the model again")
        return cls(**{name: preprocessing[name] for name in cls.__dataclass_fields__ if name in preprocessing})

    def to_dict(self) -> dict[str, Any]:
        """The manifest's `preprocessing`."""
        return {"kind": "audio", **asdict(self)}


def setting_problems(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with these settings."""
    problems: list[str] = []
    for name in ("input", "features"):
        value = given.get(name)
        if not ((isinstance(value, str) and value) or (name == "features" and value is None)):
            problems.append(f"{name} must be a name, not {value!r}")
    for name, (least, most) in {"rate": RATES, "samples": (1, MOST_SAMPLES)}.items():
        value = given.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            problems.append(f"{name} must be a whole number from {least:,} to {most:,}, not {value!r}")
    if given.get("fill", "zeros") not in FILLS:
        problems.append(f"fill must be one of {', '.join(FILLS)}, not {given.get('fill')!r}")
    if not isinstance(given.get("resample", True), bool):
        problems.append(f"resample must be true or false, not {given.get('resample')!r}")
    loudness, scale = given.get("loudness"), given.get("scale", 1.0)
    if loudness is not None and not (_is_number(loudness) and -100 <= loudness <= 0):
        problems.append(f"loudness must be a number of decibels from -100 to 0, not {loudness!r}")
    if not (_is_number(scale) and scale > 0):
        problems.append(f"scale must be a number above 0, not {scale!r}")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def heard(sound: SoundLike, settings: SoundSettings, name: str = "sound") -> Samples:
    """The whole sound at the model's rate, made louder: of a path of a wav file, its bytes, or a `Sound`.

    Raises:
        DataError: it cannot be read, is silent, or has a rate that the settings exclude. It is named, by `name` where
            it has no path.
    """
    name = str(sound) if isinstance(sound, str | Path) else name
    read = sound if isinstance(sound, Sound) else read_wav(sound, name)
    if problem := sound_problem(read, settings):
        raise DataError(f"{name}: {problem}")
    samples = resample(read.samples, read.rate, settings.rate)
    if settings.loudness is None:
        return samples
    effective = float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))
    return samples * np.float32(max(10 ** (settings.loudness / 20) / effective, 1.0) if effective else 1.0)


def sound_problem(sound: Sound, settings: SoundSettings) -> str | None:
    """Why these settings take no such sound; None if they do."""
    if not settings.resample and sound.rate != settings.rate:
        return f"its sample rate is {sound.rate:,} Hz, and this bundle takes {settings.rate:,} Hz alone: convert it"
    if not len(sound.samples) or float(np.abs(sound.samples).max()) < SILENT:
        return "nothing but silence; record it again or leave it out"
    return None


def loudest(samples: Samples, size: int, fill: str) -> Samples:
    """The window of `size` samples with the most energy, or the whole sound filled up."""
    if len(samples) <= size:
        return filled(samples, size, fill)
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[size:] - energy[:-size]))
    return samples[start : start + size]


def filled(samples: Samples, size: int, fill: str) -> Samples:
    """The sound filled up to `size` samples."""
    if fill == "repeat":
        return np.resize(samples, size)
    return np.pad(samples, (0, size - len(samples)))
