"""Boxes of a CSV file: a line for each, with its picture, its class and its corners in pixels."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from edgelora.errors import DataError
from edgelora.paths import around
from edgelora.vision.annotations.sample import (
    Box,
    DetectionSample,
    Gathered,
    find_picture,
    label_text,
    number,
    read_bytes,
)

_COLUMNS = (("image", "filename"), ("label", "class"), ("xmin",), ("ymin",), ("xmax",), ("ymax",))
EXAMPLE = "a CSV file with the columns image (or filename), label (or class), xmin, ymin, xmax, ymax"


def read_box_table(path: Path) -> list[DetectionSample]:
    """The samples of a CSV file; a line with a picture alone says that it shows nothing.

    Pictures lie beside the file, or in `images` there or beside its folder.

    Raises:
        DataError: the file cannot be read, lacks a column, or has bad lines: the first are listed.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8; save the file as UTF-8") from error
    gathered = Gathered(str(path))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    boxes: dict[str, list[tuple[str, Box]]] = {}
    header: list[int] = []
    begins = 1
    try:
        for row in reader:
            where, begins = f"{path}, line {begins}", reader.line_num + 1
            if row and not header:
                header = _header([column.strip().lower() for column in row], where)
            elif row:
                try:
                    picture, box = _line([row[i].strip() if i < len(row) else "" for i in header])
                except ValueError as error:
                    gathered.refuse(where, error)
                    continue
                boxes.setdefault(picture, []).extend([] if box is None else [(where, box)])
    except csv.Error as error:
        raise DataError(f"{path}, line {begins}: not CSV ({error})") from error
    folders = [path.parent, path.parent / "images", around(path.parent) / "images"]
    for picture, found in boxes.items():
        where = found[0][0] if found else str(path)
        try:
            gathered.add(find_picture(picture, folders), found, where)
        except ValueError as error:
            gathered.refuse(where, error)
    return gathered.done(EXAMPLE)


def _header(columns: list[str], where: str) -> list[int]:
    """Where each column stands."""
    places = [next((columns.index(name) for name in names if name in columns), -1) for names in _COLUMNS]
    missing = [" or ".join(names) for names, place in zip(_COLUMNS, places, strict=True) if place < 0]
    if missing:
        raise DataError(f"{where}: the columns are {', '.join(columns)}; missing is {', '.join(missing)}")
    return places


def _line(fields: list[str]) -> tuple[str, Box | None]:
    picture, label, *corners = fields
    if not picture:
        raise ValueError("names no picture")
    if not any((label, *corners)):
        return picture, None
    x1, y1, x2, y2 = (number(value, name) for value, (name, *_) in zip(corners, _COLUMNS[2:], strict=True))
    return picture, Box(label_text(label, "label"), (x1, y1, x2, y2))
