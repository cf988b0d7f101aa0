"""Boxes of YOLO: a text file for each picture, a line `class centre-x centre-y width height` for each object."""

from __future__ import annotations

import re
from pathlib import Path

from edgelora.errors import DataError
from edgelora.media.files import files_in
from edgelora.media.images import SUFFIXES, picture_size
from edgelora.vision.annotations.sample import (
    Box,
    DetectionSample,
    Gathered,
    label_text,
    number,
    read_bytes,
)

EXAMPLE = "a folder with images/, labels/ and classes.txt; a line of a label file is: class x y width height, in 0 … 1"
NAME_FILES = ("classes.txt", "obj.names", "names.txt", "data.yaml", "data.yml", "dataset.yaml")
_LIMIT = 1 << 20  # bytes of a file


def read_yolo(path: Path) -> list[DetectionSample]:
    """The samples of a folder with `images` and `labels`, of one inside `images`, or of pictures beside their labels.

    The classes' names stand one a line in `classes.txt`, or under `names` in `data.yaml`, there or in a folder around.
    A picture without a file of labels shows nothing. Numbers are shares of the picture's width and height.

    Raises:
        DataError: no names, or some lines are wrong: the first are listed with file and line.
    """
    gathered = Gathered(str(path))
    pictures, labels = folders_of(path)
    names = _names(path, labels)
    shown = files_in(pictures, SUFFIXES)
    known = {file.stem: file for file in files_in(labels, (".txt",)) if file.name not in NAME_FILES}
    for stem in sorted(set(known) - {picture.stem for picture in shown}):
        gathered.refuse(str(known[stem]), f"has no picture of its name in {pictures}")
    for picture in shown:
        file = known.get(picture.stem)
        try:
            boxes = [] if file is None else _boxes(file, picture, names, gathered)
        except DataError as error:
            gathered.problems.append(str(error))
            continue
        gathered.add(picture, boxes, str(file or picture))
    return gathered.done(EXAMPLE)


def folders_of(path: Path) -> tuple[Path, Path]:
    """The folders of the pictures and of the label files."""
    if (path / "images").is_dir() and (path / "labels").is_dir():
        return path / "images", path / "labels"
    parts = path.resolve().parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:last], "labels", *parts[last + 1 :])
        if labels.is_dir():
            return path, labels
    return path, path


def _boxes(file: Path, picture: Path, names: list[str], gathered: Gathered) -> list[tuple[str, Box]]:
    """The boxes of a label file, and where each stands."""
    height, width = picture_size(picture)
    boxes: list[tuple[str, Box]] = []
    for i, line in enumerate(_text(file).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        where = f"{file}, line {i}"
        try:
            if len(fields) != 5:
                raise ValueError(f"has {len(fields)} fields; expected are class x y width height")
            x, y, w, h = (number(one, "x, y, width and height") for one in fields[1:])
            if w <= 0 or h <= 0:
                raise ValueError(f"the width and the height must be above 0, not {w:g} and {h:g}")
            corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            boxes.append((where, Box(_name(fields[0], names), corners)))
        except ValueError as error:
            gathered.refuse(where, error)
    return boxes


def _name(field: str, names: list[str]) -> str:
    if not (field.isascii() and field.isdigit() and len(field) <= 9):
        raise ValueError(f"the class must be a whole number, not {field[:40]!r}")
    if int(field) >= len(names):
        raise ValueError(f"there is no class {int(field)}: the names are {', '.join(names)}, counted from 0")
    return names[int(field)]


def _names(path: Path, labels: Path) -> list[str]:
    """The names of the classes, from the nearest file that has them."""
    above = path.resolve().parents
    for folder in (labels, path, *(above[:3])):
        for file in (folder / name for name in NAME_FILES):
            if file.is_file():
                text = _text(file)
                try:
                    names = _yaml_names(text) if file.suffix in (".yaml", ".yml") else text.rstrip().splitlines()
                    made = [label_text(name, f"line {i}") for i, name in enumerate(names, 1)]
                except ValueError as error:
                    raise DataError(f"{file}: {error}") from error
                if made:
                    return made
    raise DataError(f"{path}: has no file of the classes' names; write them into classes.txt, one a line, from 0 on")


def _yaml_names(text: str) -> list[str]:
    """The entries of `names` in a data.yaml: a list or `number: name`, in brackets or a line each.

    Raises:
        ValueError: the numbers are not 0, 1, 2 and so on.
    """
    form = r"^names:[ \t]*(\[[^\]]*\]|\{[^}]*\})?(.*)\n((?:[ \t]+\S.*\n?|-[ \t].*\n?)*)"
    found = re.search(form, text + "\n", re.MULTILINE)
    if found is None:
        return []
    entries = found[1][1:-1].split(",") if found[1] else found[3].splitlines()
    parts = [re.match(r"\s*(?:-\s|(\d{1,9})\s*:)?(.*)", entry.split(" #")[0], re.DOTALL) for entry in entries]
    told = [(part[1], part[2].strip().strip("'\"")) for part in parts if part and part[2].strip()]
    numbered = {int(number): name for number, name in told if number is not None}
    if numbered and sorted(numbered) != list(range(len(told))):
        raise ValueError(f"the names must have the numbers 0 to {len(told) - 1}, each once")
    return [numbered[i] for i in range(len(told))] if numbered else [name for _, name in told]


def _text(file: Path) -> str:
    try:
        return read_bytes(file, _LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8; save the file as UTF-8") from error
