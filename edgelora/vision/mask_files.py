"""Pictures with masks: a folder of each with equal names, or CSV and JSONL of pairs.

A mask has one channel and its picture's size: numbers of classes, of which 255 counts for nothing; or 0 and 255 alone,
which are two classes unless `classes.txt` names another number of them; or a palette, whose indices are the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import DataError
from edgelora.media.files import content_record, files_in
from edgelora.media.images import SUFFIXES, opened
from edgelora.paths import is_file, is_folder
from edgelora.records import Record, adapter_field, first_of, parse_records, source_name, text_field
from edgelora.samples import Named
from edgelora.vision.masks import IGNORED, Classes

PICTURES, MASKS = ("images", "image", "img"), ("masks", "mask", "labels", "label", "annotations")
CLASSES_FILE = "classes.txt"
IGNORED_VALUE = 255
_MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".webp")
_BLURRED = (".jpg", ".jpeg")
_MODES = {"1", "L", "P", "I", "I;16"}
_MOST_CLASSES = 64


@dataclass(frozen=True)
class MaskSample:
    """A picture and its mask of `size` (height, width). `values` are the mask's and how many pixels have each; `names`
    those of its classes.
    """

    path: Path
    mask: Path
    size: tuple[int, int]
    values: tuple[tuple[int, int], ...]
    names: tuple[tuple[int, str], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        names = dict(self.names)
        return tuple(names[value] for value, _ in self.values if value in names)

    @property
    def stratum(self) -> str:
        return ""

    def record(self) -> Any:
        return [self.path.name, content_record(self.path), self.mask.name, content_record(self.mask), self.names]

    def classes(self, index: Mapping[str, int]) -> Classes:
        """The mask `[H, W]` in numbers of classes: `index` of their names, `IGNORED` for what counts for nothing."""
        table: Classes = np.full(256, IGNORED, np.uint8)
        for value, name in self.names:
            table[value] = index.get(name, IGNORED)
        return np.asarray(table[read_mask(self.mask)])


def read_masks(path: str | Path, fmt: str | None = None) -> list[Named[MaskSample]]:
    """The pairs of a folder, or of a file of records with the fields image and mask, paths from the file's folder.

    A folder holds one of pictures (`images`) and one of masks (`masks`, `labels`); a mask has the name of its picture,
    with a suffix of its own. Beside them a file `classes.txt` may name the classes, a line for each number from 0.

    Raises:
        DataError: what is wrong, by file and line.
    """
    folder = Path(path)
    if is_folder(folder):
        pairs = _in_folder(folder)
        beside = folder
    else:
        beside = folder.parent
        lines = parse_records(path, fmt, lambda record: _pair(record, beside), ("image", "mask"))
        pairs = [Named(pair, adapter, f"{source_name(path)}, line {line}") for line, (pair, adapter) in lines]
    problems: list[str] = []
    found: list[Named[MaskSample]] = []
    for one in pairs:
        picture, mask = one.content
        try:
            if not is_file(picture):
                raise DataError(f"there is no picture {picture}")
            pixels = read_mask(mask)
            values, counts = np.unique(pixels, return_counts=True)
            told = tuple((int(v), int(n)) for v, n in zip(values, counts, strict=True))
            size = pixels.shape[0], pixels.shape[1]
            found.append(Named(MaskSample(picture, mask, size, told, ()), one.adapter, one.where))
        except DataError as error:
            problems.append(f"{one.where}: {error}" if one.where != str(picture) else str(error))
    if problems:
        raise DataError(first_of(problems, "problems"))
    names = _names([one.content for one in found], beside / CLASSES_FILE)
    return [Named(replace(one.content, names=names), one.adapter, one.where) for one in found]


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The values of a mask `[H, W]`.

    Raises:
        DataError: it cannot be read, or has colours. EdgeLoraError: Pillow is missing.
    """
    with opened(path) as file:
        mode = file.mode
        values = np.asarray(file) if mode in _MODES else None
    if values is None:
        raise DataError(
            f"{path}: a mask has one channel, of class numbers, of 0 and 255, or with a palette; this one is {mode}"
        )
    if int(values.max(initial=0)) > IGNORED_VALUE or int(values.min(initial=0)) < 0:
        raise DataError(f"{path}: the mask has values up to {values.max()}; classes are 0 to {IGNORED_VALUE - 1}")
    return np.ascontiguousarray(values, np.uint8)


def _pair(record: Record, beside: Path) -> tuple[tuple[Path, Path], str | None]:
    return (beside / text_field(record, "image"), beside / text_field(record, "mask")), adapter_field(record)


def _in_folder(folder: Path) -> list[Named[tuple[Path, Path]]]:
    """Pictures with the masks of their names.

    Raises:
        DataError: one of the folders is absent or empty, or pictures have no mask.
    """
    pictures, masks = (next((folder / n for n in names if (folder / n).is_dir()), None) for names in (PICTURES, MASKS))
    if pictures is None or masks is None:
        raise DataError(
            f"{folder}: expected are two folders in it, {PICTURES[0]} with pictures and {MASKS[0]} with their masks, "
            "of the same names"
        )
    by_stem: dict[str, Path] = {}
    for file in files_in(masks, _MASK_SUFFIXES):
        if (other := by_stem.setdefault(file.stem, file)) is not file:
            raise DataError(f"{other} and {file.name} are masks of the same name: leave the right one there")
    files = files_in(pictures, SUFFIXES)
    if not files:
        raise DataError(f"{pictures}: holds no pictures ({', '.join(SUFFIXES)})")
    blurred = {file.stem: file.name for file in files_in(masks, _BLURRED)}
    alone = [_alone(file, masks, blurred) for file in files if file.stem not in by_stem]
    if alone:
        raise DataError(first_of(alone, "pictures without a mask"))
    return [Named((file, by_stem[file.stem]), None, str(file)) for file in files]


def _alone(picture: Path, masks: Path, blurred: Mapping[str, str]) -> str:
    """What is wrong with a picture that has no mask, or one that is of no use."""
    if picture.stem in blurred:
        return f"{picture}: its mask {blurred[picture.stem]} is a JPEG, which blurs classes; save it as PNG"
    return f"{picture}: there is no mask {masks / picture.stem}.png"


def _names(samples: Sequence[MaskSample], file: Path) -> tuple[tuple[int, str], ...]:
    """The classes that a data set's masks hold, and their names.

    Raises:
        DataError: the masks hold too many values to be classes, or ones that the file does not name.
    """
    values = sorted({value for sample in samples for value, _ in sample.values})
    names = _lines(file) if file.is_file() else None
    two = set(values) <= {0, IGNORED_VALUE} and (names is None or len(names) == 2)
    classes = [value for value in values if two or value != IGNORED_VALUE]
    if len(classes) > _MOST_CLASSES:
        raise DataError(
            f"{samples[0].mask}: the masks hold {len(classes)} values, which look like grey levels, not classes"
        )
    if names is None:
        return tuple((value, str(value)) for value in classes)
    numbers = {value: int(value == IGNORED_VALUE) if two else value for value in classes}
    unnamed = [value for value in classes if numbers[value] >= len(names)]
    if unnamed or len(set(names)) < len(names):
        values_told = ", ".join(map(str, unnamed))
        what = f"has no name for the values {values_told} of the masks" if unnamed else "names one twice"
        raise DataError(f"{file}: {what}; it takes a line for each class, from 0")
    return tuple((value, names[numbers[value]]) for value in classes)


def _lines(file: Path) -> list[str]:
    """The lines that are not empty. Raises DataError: it is no text."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text in UTF-8 ({error})") from error
    return [line for line in lines if line]
