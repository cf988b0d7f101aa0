"""Pictures with boxes, as every format of annotations tells them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgelora.errors import DataError
from edgelora.media.files import content_record
from edgelora.media.images import picture_size
from edgelora.paths import is_file
from edgelora.records import first_of
from edgelora.unicode import is_unicode

_EDGE = 1.0  # pixels that a box may end beyond the picture, as tools round; it is cut off there
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """An object: its class, and `[x1, y1, x2, y2]` in pixels of the upright picture, whose corner is (0, 0).

    `ignored` is a crowd, or an object marked as difficult: nothing is learned from it and detections of it count
    neither way.
    """

    label: str
    corners: Corners
    ignored: bool = False


@dataclass(frozen=True)
class DetectionSample:
    """A picture file and what is to be found in it."""

    path: Path
    boxes: tuple[Box, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({box.label for box in self.boxes if not box.ignored}))

    @property
    def stratum(self) -> str:
        return ""

    def record(self) -> Any:
        boxes = [[box.label, *box.corners, box.ignored] for box in self.boxes]
        return [self.path.name, content_record(self.path), boxes]


@dataclass
class Gathered:
    """The samples of a data set as they are read, and what is wrong with it, all told at once."""

    name: str
    samples: list[DetectionSample] = field(default_factory=list[DetectionSample])
    problems: list[str] = field(default_factory=list[str])

    def refuse(self, where: str, problem: object) -> None:
        """Note what is wrong, and where: file and line or element."""
        self.problems.append(f"{where}: {problem}")

    def add(
        self, picture: Path, boxes: Iterable[tuple[str, Box]], where: str, told: tuple[int, int] | None = None
    ) -> None:
        """A picture with its boxes, each with where it is told; `told` is the (width, height) that the file claims."""
        try:
            height, width = picture_size(picture)
            size = (width, height)
        except DataError as error:
            self.problems.append(str(error))
            return
        if told is not None and told != size:
            self.refuse(where, f"is for a picture of {told[0]} × {told[1]} pixels; {picture} has {size[0]} × {size[1]}")
            return
        kept: list[Box] = []
        for place, box in boxes:
            try:
                kept.append(_inside(box, size))
            except ValueError as error:
                self.refuse(place, error)
        self.samples.append(DetectionSample(picture, tuple(kept)))

    def done(self, example: str) -> list[DetectionSample]:
        """The samples.

        Raises:
            DataError: there are none (`example` says what is expected), or something is wrong with some.
        """
        if self.problems:
            raise DataError(first_of(self.problems, "problems"))
        if not self.samples:
            raise DataError(f"{self.name}: holds no pictures with boxes; expected is {example}")
        return self.samples


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """The box, cut at the picture's edge. Raises ValueError where it is no box, or is not in the picture."""
    x1, y1, x2, y2 = box.corners
    shown = f"{box.label} at {x1:g}, {y1:g} to {x2:g}, {y2:g}"
    if not all(map(math.isfinite, box.corners)):
        raise ValueError(f"{shown} is not a box")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{shown} has no width or height; a box ends right of and below where it begins")
    width, height = size
    if min(x1, y1) < -_EDGE or x2 > width + _EDGE or y2 > height + _EDGE:
        raise ValueError(f"{shown} lies outside the picture, which has {width} × {height} pixels")
    cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise ValueError(f"{shown} lies outside the picture, which has {width} × {height} pixels")
    return Box(box.label, cut, box.ignored)


def number(value: object, what: str) -> float:
    """A finite number. Raises ValueError for anything else."""
    made = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            made = float(value)
    if not math.isfinite(made):
        raise ValueError(f"{what} must be a number, not {str(value)[:40]!r}")
    return made


def label_text(value: object, what: str) -> str:
    """A class's name. Raises ValueError for anything but a text that is not blank."""
    text = value.strip() if isinstance(value, str) else ""
    if not text or not is_unicode(text):
        raise ValueError(f"{what} must be the name of a class")
    return text


def find_picture(name: str, folders: Sequence[Path]) -> Path:
    """A picture by its name, in the first of the folders that has it. Raises ValueError where none has."""
    for folder in folders:
        if is_file(folder / name):
            return folder / name
    raise ValueError(f"the picture {name[:200]!r} is missing from {', '.join(dict.fromkeys(map(str, folders)))}")


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """A file's content. Raises DataError where it cannot be read, or is longer than `limit`."""
    try:
        with path.open("rb") as stream:
            content = stream.read() if limit is None else stream.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if limit is not None and len(content) > limit:
        raise DataError(f"{path}: longer than {limit:,} bytes")
    return content
