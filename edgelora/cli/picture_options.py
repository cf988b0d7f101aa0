"""How pictures enter a bundle, and what a detector's own outputs mean: options of convert."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgelora.errors import ConfigError, DataError
from edgelora.manifest import DetectorSettings
from edgelora.media.placement import FITS, RESAMPLES
from edgelora.vision.detectors import FAMILIES


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """How pictures become the model's input: fields of `ImageSettings`."""
    group = parser.add_argument_group("pictures (default: what the source says of itself)")
    group.add_argument("--image-size", nargs=2, type=int, metavar=("H", "W"), help="height and width of the input")
    group.add_argument(
        "--image-fit", choices=FITS, help="how a picture is put into it: stretch (default), crop, letterbox"
    )
    group.add_argument(
        "--image-share", type=float, metavar="S", help="of crop: the share of the shorter side that is kept (1)"
    )
    group.add_argument(
        "--image-scale", type=float, metavar="X", help="what pixels from 0 to 255 are multiplied by (1/255)"
    )
    group.add_argument("--image-mean", nargs="+", type=float, metavar="X", help="then subtracted, of each channel (0)")
    group.add_argument("--image-std", nargs="+", type=float, metavar="X", help="then divided by, of each channel (1)")
    group.add_argument("--image-order", choices=("RGB", "BGR"), help="of the channels (RGB)")
    group.add_argument("--image-resample", choices=RESAMPLES, help="(bilinear)")


def image_options(options: argparse.Namespace) -> dict[str, Any] | None:
    """The fields of `ImageSettings` that were given; None if none was."""
    names = ("size", "fit", "share", "scale", "mean", "std", "order", "resample")
    given = {name: getattr(options, f"image_{name}") for name in names}
    return {name: value for name, value in given.items() if value is not None} or None


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """What a detector's own outputs mean: fields of `DetectorSettings`."""
    group = parser.add_argument_group("object detection by the source's own outputs (default: a new head on its maps)")
    group.add_argument("--detector", choices=FAMILIES, help="the family of detectors that says what the maps mean")
    group.add_argument("--classes", type=Path, metavar="FILE", help="the names of its classes, one a line, in order")
    group.add_argument(
        "--anchors", nargs="+", metavar="W,H,W,H,…", help="for yolo: the anchors of each map, in pixels of the input"
    )


def detector_options(options: argparse.Namespace) -> DetectorSettings | None:
    """The settings that were given; None if there are none.

    Raises:
        ConfigError: some without --detector, or anchors that are no pairs of numbers.
        DataError: the classes' names cannot be read.
    """
    if options.detector is None:
        if options.classes or options.anchors:
            raise ConfigError("--classes and --anchors are of a source's own detector: name its family with --detector")
        return None
    classes: Path | None = options.classes
    levels: list[str] = options.anchors or []
    try:
        lines = [] if classes is None else classes.read_text(encoding="utf-8-sig").splitlines()
        sides = [[float(side) for side in level.split(",")] for level in levels]
    except OSError as error:
        raise DataError(f"{classes}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{classes}: not UTF-8; save the file as UTF-8") from error
    except ValueError as error:
        raise ConfigError("--anchors takes a list W,H,W,H,… for each map") from error
    if any(len(level) % 2 for level in sides):
        raise ConfigError("--anchors takes pairs: a width and a height for each anchor")
    anchors = tuple(tuple(zip(level[::2], level[1::2], strict=True)) for level in sides)
    return DetectorSettings(options.detector, anchors, tuple(line.strip() for line in lines if line.strip()))
