"""Boxes of COCO: one JSON file of images, annotations and categories (cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

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

EXAMPLE = (
    '{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "cat"}], '
    '"annotations": [{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height]}]}'
)
Body = Mapping[str, Any]


def read_coco(path: Path) -> list[DetectionSample]:
    """The samples of a COCO file; a box with `iscrowd` is ignored.

    Pictures lie beside the file, in `images` there or beside its folder, or where `file_name` leads from one of these.

    Raises:
        DataError: the file cannot be read, or some of its elements are wrong: the first are listed.
    """
    body = _body(path)
    gathered = Gathered(str(path))
    names: dict[object, str] = {}
    for where, one in _elements(body, "categories", path, gathered):
        try:
            names[_new_id(one, names)] = label_text(one.get("name"), "'name'")
        except ValueError as error:
            gathered.refuse(where, error)
    images: dict[object, tuple[str, Body]] = {}
    for where, one in _elements(body, "images", path, gathered):
        try:
            images[_new_id(one, images)] = (where, one)
        except ValueError as error:
            gathered.refuse(where, error)
    boxes: dict[object, list[tuple[str, Box]]] = {key: [] for key in images}
    for where, one in _elements(body, "annotations", path, gathered):
        try:
            image, box = _box(one, names)
            if image not in boxes:
                raise ValueError(f"no image has the id {image!r}")
            boxes[image].append((where, box))
        except ValueError as error:
            gathered.refuse(where, error)
    beside = around(path.parent)
    folders = [path.parent, path.parent / "images", beside / "images", beside]
    for key, (where, one) in images.items():
        try:
            name = one.get("file_name")
            if not isinstance(name, str) or not name:
                raise ValueError("'file_name' must be the name of a picture")
            told = (_size(one, "width"), _size(one, "height")) if "width" in one and "height" in one else None
            picture = find_picture(name, folders)
        except ValueError as error:
            gathered.refuse(where, error)
            continue
        gathered.add(picture, boxes[key], where, told)
    return gathered.done(EXAMPLE)


def _body(path: Path) -> Body:
    try:
        body = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(body, dict):
        raise DataError(f"{path}: not COCO's format, which is {EXAMPLE}")
    return cast("Body", body)


def _elements(body: Body, field: str, path: Path, gathered: Gathered) -> Iterator[tuple[str, Body]]:
    """The elements of a list, and where each stands."""
    found = body.get(field)
    if not isinstance(found, list):
        raise DataError(f"{path}: has no list {field!r}; COCO's format is {EXAMPLE}")
    for i, one in enumerate(cast("list[object]", found)):
        where = f"{path}, {field}[{i}]"
        if isinstance(one, dict):
            yield where, cast("Body", one)
        else:
            gathered.refuse(where, "not a JSON object")


def _id(one: Body, field: str) -> int | str:
    value = one.get(field)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{field!r} must be a number")
    return value


def _new_id(one: Body, known: Mapping[object, object]) -> int | str:
    value = _id(one, "id")
    if value in known:
        raise ValueError(f"the id {value!r} is that of another before")
    return value


def _size(one: Body, field: str) -> int:
    return round(number(one.get(field), repr(field)))


def _box(one: Body, names: Mapping[object, str]) -> tuple[object, Box]:
    """The image that an annotation belongs to, and its box."""
    category = _id(one, "category_id")
    if category not in names:
        raise ValueError(f"no category has the id {category!r}")
    given = one.get("bbox")
    if not isinstance(given, list) or len(cast("list[object]", given)) != 4:
        raise ValueError("'bbox' must be [x, y, width, height]")
    x, y, width, height = (number(value, "a number of 'bbox'") for value in cast("list[object]", given))
    crowd = one.get("iscrowd") in (1, True)
    return _id(one, "image_id"), Box(names[category], (x, y, x + width, y + height), crowd)
