"""Labelled points: CSV of a point a row, DeepLabCut's CSV, or JSONL of a picture a line."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgelora.errors import DataError
from edgelora.media.files import content_record
from edgelora.paths import is_file
from edgelora.records import Record, adapter_field, first_of, parse_records, shown, source_name, text_field
from edgelora.samples import Named

EXAMPLE = '{"image": "a.png", "points": {"nose": [12.5, 30], "tail": null}}'
_ABOVE = 3  # folders above a file in which its paths may begin
_NO, _YES = ("0", "false", "no"), ("", "1", "2", "true", "yes")


@dataclass(frozen=True)
class Place:
    """A visible point by its name, in pixels of the picture."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class KeypointSample:
    """A picture's visible points; `names` are those of all points that the file tells of."""

    path: Path
    points: tuple[Place, ...]
    names: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.names

    @property
    def stratum(self) -> str:
        return ""

    def record(self) -> Any:
        points = [(point.name, point.x, point.y) for point in self.points]
        return [self.path.name, content_record(self.path), points, self.names]


@dataclass(frozen=True)
class _Given:
    """What a record says: a point, or None where it is not visible, of each name; of one picture."""

    image: str
    points: tuple[tuple[str, tuple[float, float] | None], ...]
    adapter: str | None
    where: str


def read_keypoints(path: str | Path, fmt: str | None = None) -> list[Named[KeypointSample]]:
    """The pictures of a file with their points, in the order in which they are first named.

    CSV has the columns image, name, x, y and, if some points are not to be seen, visible (0 or 1); or DeepLabCut's
    header of three rows, an empty cell where a point is not to be seen. A record of JSONL is `{"image": …, "points":
    {"nose": [x, y], "tail": null}}`. Paths begin at the file's folder; DeepLabCut's at its project's, up to three
    folders above.

    Raises:
        DataError: what is wrong, by file and line.
    """
    if _is_deeplabcut(path):
        given = _deeplabcut(Path(path))
    else:
        lines = parse_records(path, fmt, _parsed, ("image", "name", "x", "y"), EXAMPLE)
        given = [_Given(*one, f"{source_name(path)}, line {line}") for line, one in lines]
    return _grouped(given, Path(path).parent)


def _parsed(record: Record) -> tuple[str, tuple[tuple[str, tuple[float, float] | None], ...], str | None]:
    image, adapter = text_field(record, "image"), adapter_field(record)
    if "points" not in record:
        name = text_field(record, "name")
        visible = str(record.get("visible", "")).strip().lower()
        if visible not in (*_NO, *_YES):
            raise ValueError(f"the field 'visible' must be 0 or 1, not {shown(record['visible'])}")
        return image, ((name, None if visible in _NO else _position(record.get("x"), record.get("y"), name)),), adapter
    points = record["points"]
    if not isinstance(points, dict) or not points:
        raise ValueError('the field "points" must be an object such as {"nose": [12.5, 30], "tail": null}')
    found: list[tuple[str, tuple[float, float] | None]] = []
    for name, at in cast("dict[str, Any]", points).items():
        two = cast("list[Any]", at) if isinstance(at, list) else []
        if at is not None and len(two) != 2:
            raise ValueError(f"the point {name!r} must be [x, y] or null, not {shown(cast(object, at))}")
        found.append((name, None if at is None else _position(two[0], two[1], name)))
    return image, tuple(found), adapter


def _position(x: Any, y: Any, name: str) -> tuple[float, float]:
    """x and y as numbers; ValueError if they are none, or not finite."""
    try:
        at = float(x), float(y)
    except (TypeError, ValueError, OverflowError):
        at = math.nan, math.nan
    if not all(map(math.isfinite, at)):
        raise ValueError(f"the point {name!r} must have numbers for x and y, not {shown(x)} and {shown(y)}")
    return at


def _grouped(given: Sequence[_Given], beside: Path) -> list[Named[KeypointSample]]:
    """A sample for each picture.

    Raises:
        DataError: a picture is not there, has a point twice, or points for different adapters.
    """
    names = tuple(sorted({name for one in given for name, _ in one.points}))
    pictures: dict[str, list[_Given]] = {}
    for one in given:
        pictures.setdefault(one.image, []).append(one)
    samples: list[Named[KeypointSample]] = []
    problems: list[str] = []
    for image, told in pictures.items():
        path = beside / image
        where = told[0].where
        if not is_file(path):
            problems.append(f"{where}: there is no picture {path}")
        seen: dict[str, str] = {}
        for one in told:
            for name, _ in one.points:
                if name in seen:
                    problems.append(f"{one.where}: the point {name!r} of {image} was given before, at {seen[name]}")
                seen[name] = one.where
            if one.adapter != told[0].adapter:
                problems.append(f"{one.where}: {image} has points for different adapters")
        points = tuple(Place(name, *at) for one in told for name, at in one.points if at is not None)
        samples.append(Named(KeypointSample(path, points, names), told[0].adapter, where))
    if problems:
        raise DataError(first_of(problems, "problems"))
    return samples


def _is_deeplabcut(path: str | Path) -> bool:
    """Whether a file begins with DeepLabCut's row of scorers."""
    try:
        with Path(path).open("rb") as file:
            return file.read(16).lstrip(b'\xef\xbb\xbf"').startswith(b"scorer")
    except OSError:
        return False


def _deeplabcut(path: Path) -> list[_Given]:
    """Rows under the header scorer, bodyparts, coords; the picture's path is in one column, or a folder a column.

    Raises:
        DataError: as `read_keypoints` does.
    """
    rows = _rows(path)
    header = {row[0]: row for _, row in rows[:3] if row}
    parts, coords = header.get("bodyparts", []), header.get("coords", [])
    first = next((i for i, cell in enumerate(coords) if cell == "x"), 0)
    pairs = list(range(first, len(coords), 2))
    if not first or coords[first:] != ["x", "y"] * len(pairs) or len(parts) != len(coords):
        raise DataError(
            f"{path}: expected are three rows of a header, scorer, bodyparts (each twice) and coords (x, y, x, y, …), "
            "of one animal, as DeepLabCut writes them"
        )
    if any(parts[i] != parts[i + 1] or not parts[i] for i in pairs):
        raise DataError(f"{path}, line 2: the columns of x and y must be of the same body part")
    given: list[_Given] = []
    problems: list[str] = []
    for line, row in rows[3:]:
        where = f"{path}, line {line}"
        if len(row) != len(coords):
            problems.append(f"{where}: {len(row)} columns where the header has {len(coords)}")
            continue
        try:
            points = tuple((parts[i], _cells(row[i], row[i + 1], parts[i])) for i in pairs)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        given.append(_Given(_within(path.parent, row[:first]), points, None, where))
    if problems:
        raise DataError(first_of(problems, "bad lines"))
    if not given:
        raise DataError(f"{path}: holds no samples under its header")
    return given


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with its line.

    Raises:
        DataError: the file is not CSV in UTF-8.
    """
    rows: list[tuple[int, list[str]]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows += [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error
    return rows


def _cells(x: str, y: str, name: str) -> tuple[float, float] | None:
    absent = {"", "nan"}
    return None if {x.lower(), y.lower()} <= absent else _position(x, y, name)


def _within(beside: Path, cells: Sequence[str]) -> str:
    """The picture's path from the folder of the file; as it stands if there is no such picture."""
    given = Path(*(cell.replace("\\", "/") for cell in cells))
    above = [beside / Path(*[".."] * steps) for steps in range(_ABOVE + 1)]
    found = next((folder / given for folder in above if is_file(folder / given)), beside / given.name)
    return str(found.relative_to(beside)) if is_file(found) else str(given)
