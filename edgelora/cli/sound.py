"""What verbs have for sounds: how they enter a bundle, and whose voice one is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgelora.cli.common import desktop
from edgelora.cli.values import texts_by_name
from edgelora.runtime import Model
from edgelora.voices import enrol, read_voices, recognise, threshold_of


def add_sound_options(parser: argparse.ArgumentParser) -> None:
    """How sounds become the model's input (docs/sound.md)."""
    group = parser.add_argument_group("sounds (default: what the recipe says)")
    group.add_argument(
        "--sound",
        nargs="+",
        metavar="SETTING=VALUE",
        help="the window that the model hears: rate, seconds, fill, loudness, resample, scale",
    )
    group.add_argument(
        "--log-mel",
        nargs="*",
        metavar="SETTING=VALUE",
        help="compute a spectrum: n_fft, win_length, hop, mels, fmin, fmax, center, power, scale, norm, log, floor",
    )
    group.add_argument(
        "--features", type=Path, metavar="FILE.onnx", help="a graph from samples [batch, samples] to the model's input"
    )
    group.add_argument("--features-factor", type=float, default=1.0, metavar="X", help="what it gives is multiplied by")
    group.add_argument("--features-offset", type=float, default=0.0, metavar="X", help="then added to that")


def sound_options(options: argparse.Namespace) -> Any:
    """`SoundOptions` of the desktop tools; None if nothing was said of sound."""
    if options.sound is None and options.log_mel is None and options.features is None:
        return None
    log_mel = None if options.log_mel is None else texts_by_name("--log-mel", options.log_mel)
    return desktop("sound_features").SoundOptions(
        texts_by_name("--sound", options.sound or []),
        log_mel,
        options.features,
        options.features_factor,
        options.features_offset,
    )


def recognised(
    model: Model, sounds: list[Any], path: str, adapter: str | None, threshold: float | None
) -> list[dict[str, Any]]:
    """JSON-able: whose voice each sound is, of those enrolled from `path`."""
    voices = enrol(model, read_voices(path), adapter)
    if threshold is None and adapter is not None:
        threshold = threshold_of(model.store.load(adapter))
    matches = recognise(model, sounds, voices, adapter, threshold)
    return [
        {"audio": str(s), "speaker": m.speaker, "score": round(m.score, 4), "nearest": m.nearest}
        for s, m in zip(sounds, matches, strict=True)
    ]
