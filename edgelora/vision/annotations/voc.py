"""Boxes of Pascal VOC: an XML file for each picture, as labelImg and others write it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from edgelora.errors import DataError
from edgelora.media.images import SUFFIXES
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

EXAMPLE = "a folder of XML files with <filename> and <object>s of <name> and <bndbox>, and the pictures beside it"
FOLDERS = ("Annotations", "annotations")
_LIMIT = 1 << 20  # bytes of a file
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path: Path) -> list[DetectionSample]:
    """The samples of a folder that has XML files, or has them in `Annotations`; an object that is difficult is ignored.

    Pictures lie beside the files, or in `JPEGImages` or `images` there or beside their folder. Pixels are counted from
    1. A file with a document type definition is refused: it could name other files or grow without bound.

    Raises:
        DataError: there are no files, or some are wrong: the first are listed with the line.
    """
    gathered = Gathered(str(path))
    for file in files(path):
        try:
            _read(file, path, gathered)
        except (ValueError, DataError) as error:
            gathered.problems.append(str(error) if isinstance(error, DataError) else f"{file}: {error}")
    return gathered.done(EXAMPLE)


def files(path: Path) -> list[Path]:
    """The XML files of a folder, in the order of their names."""
    return sorted(file for folder in (path, *(path / name for name in FOLDERS)) for file in folder.glob("[!.]*.xml"))


def _read(file: Path, path: Path, gathered: Gathered) -> None:
    root, lines = parse(read_bytes(file, _LIMIT))
    boxes: list[tuple[str, Box]] = []
    for found in root.iter("object"):
        where = f"{file}, line {lines[found]}"
        try:
            boxes.append((where, _box(found)))
        except ValueError as error:
            gathered.refuse(where, error)
    size = root.find("size")
    told = (0, 0) if size is None else (round(_number(size, "width")), round(_number(size, "height")))
    near = [path, file.parent, around(file.parent)]
    folders = [folder / name for folder in near for name in ("JPEGImages", "images", "")]
    gathered.add(_picture(root, file, folders), boxes, f"{file}, line {lines[root]}", told if any(told) else None)


def parse(content: bytes) -> tuple[Element, dict[Element, int]]:
    """An XML document and the line of each of its elements. Raises ValueError where it is none, or has a DTD."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    lines: dict[Element, int] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    def refuse(*_: object) -> None:
        raise ValueError("has a document type definition, which is not read; remove the line <!DOCTYPE …>")

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"not XML ({error})") from error
    return builder.close(), lines


def _picture(root: Element, file: Path, folders: list[Path]) -> Path:
    """The picture that a file names, else one of the file's own name."""
    told = (root.findtext("filename") or "").strip()
    names = [*([told] if told else []), *(file.stem + ending for ending in SUFFIXES)]
    for name in names:
        with contextlib.suppress(ValueError):
            return find_picture(name, folders)
    return find_picture(names[0], folders)


def _box(found: Element) -> Box:
    label = label_text(found.findtext("name"), "<name>")
    bounds = found.find("bndbox")
    if bounds is None:
        raise ValueError("the object has no <bndbox>")
    x1, y1, x2, y2 = (_number(bounds, tag) for tag in _CORNERS)
    difficult = (found.findtext("difficult") or "").strip() == "1"
    return Box(label, (x1 - 1, y1 - 1, x2, y2), difficult)


def _number(parent: Element, tag: str) -> float:
    return number(parent.findtext(tag), f"<{tag}>")
