"""A contact sheet: pictures in rows, with columns such as the truth, before and after training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgelora.errors import DataError
from edgelora.media.drawing import DARK, LIGHT, Picture, letters, pillow, shortened
from edgelora.paths import is_file, is_folder

CELL = 320
"""Pixels of a column, and of the longer side of a picture that is drawn for one."""
_GAP, _TITLE, _NAME = 8, 20, 14


@dataclass(frozen=True)
class Row:
    """The pictures of a row, `[H, W, 3]` each, and the name of what they show."""

    name: str
    pictures: tuple[Picture, ...]


def contact_sheet(titles: Sequence[str], rows: Sequence[Row], cell: int = CELL) -> Picture:
    """The rows under each other, under the titles of their columns, `cell` wide each: `[H, W, 3]`.

    Every row has a picture a title; one that is wider than the cell is made smaller.

    Raises:
        EdgeLoraError: Pillow is missing.
    """
    image_module, draw_module, _ = pillow()
    made = [[image_module.fromarray(_fitted(picture, cell)) for picture in row.pictures] for row in rows]
    width = _GAP + (cell + _GAP) * len(titles)
    heights = [max(picture.height for picture in pictures) + _NAME + 3 * _GAP // 2 for pictures in made]
    sheet = image_module.new("RGB", (width, 2 * _GAP + _TITLE + sum(heights)), LIGHT)
    canvas = draw_module.Draw(sheet)
    for column, title in enumerate(titles):
        font, x = letters(_TITLE), _GAP + (cell + _GAP) * column
        canvas.text((x, _GAP), shortened(title, font, cell), fill=DARK, font=font)
    y = 2 * _GAP + _TITLE
    for row, pictures, height in zip(rows, made, heights, strict=True):
        font = letters(_NAME)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (_GAP + (cell + _GAP) * column, y))
        canvas.text((_GAP, y + height - _NAME - _GAP), shortened(row.name, font, width - 2 * _GAP), DARK, font=font)
        y += height
    return np.asarray(sheet)


def _fitted(picture: Picture, width: int) -> Picture:
    if picture.shape[1] <= width:
        return picture
    image_module = pillow()[0]
    size = width, max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(image_module.fromarray(picture).resize(size, image_module.Resampling.LANCZOS))


def check_name(path: Path) -> None:
    """Raise DataError unless the file's name says a format that Pillow writes."""
    image_module = pillow()[0]
    if image_module.registered_extensions().get(path.suffix.lower()) not in image_module.SAVE:
        raise DataError(f"{path}: which kind of picture? Name it .png or .jpg")


def check_place(path: Path) -> None:
    """Raise DataError where no file can be made: it is a folder, or nothing can be written around it."""
    around = next(folder for folder in path.absolute().parents if is_folder(folder) or is_file(folder))
    if path.is_dir() or not around.is_dir() or not os.access(around, os.W_OK):
        raise DataError(f"{path}: no picture can be written there")


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture `[H, W, 3]`, its folder too, in the format that the name says (.png, .jpg, .webp).

    Raises:
        DataError: the name says no format that Pillow writes, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pillow()[0].fromarray(picture).save(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: the picture cannot be written ({error}); name it .png or .jpg") from error
