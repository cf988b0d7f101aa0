"""Records of CSV and JSONL, from a file or standard input; a bad line is named by file and number."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from edgelora.errors import DataError
from edgelora.paths import is_file, is_folder
from edgelora.unicode import NOT_UNICODE, is_unicode

T = TypeVar("T")
_LINE_LIMIT = 1 << 20  # bytes
_SHOWN = 5
STANDARD_INPUT = "-"
FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}

Record = dict[str, Any]


def source_name(path: str | Path) -> str:
    """How messages name where the records come from."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def parse_records(
    path: str | Path,
    fmt: str | None,
    parse: Callable[[Record], T],
    needed: Sequence[str],
    example: str | None = None,
) -> list[tuple[int, T]]:
    """What `parse` makes of the records, with the number of the line that each begins on.

    `path` "-" is standard input, whose format is JSONL unless given. `parse` says by ValueError what is wrong with a
    record; `needed` are the fields that each must have; an `example` shows a record where these do not. A line may hold
    1 MiB, a field of CSV what the csv module allows (128 KiB). Text is UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file cannot be read, is empty, lacks a field, or has bad lines (the first ones are
            listed with file and line number).
    """
    name = source_name(path)
    samples: list[tuple[int, T]] = []
    problems: list[str] = []
    for line, record in _records(path, name, fmt, needed):
        try:
            samples.append((line, parse(_require(record))))
        except ValueError as error:
            problems.append(f"{name}, line {line}: {error}")
    if problems:
        raise DataError(first_of(problems, "bad lines"))
    if not samples:
        raise DataError(f"{name}: holds no samples; one line is {example or _example(needed)}")
    return samples


def first_of(problems: Sequence[str], what: str) -> str:
    """The first problems, a line each, and how many more there are of `what`."""
    more = f"\nand {len(problems) - _SHOWN:,} more {what}" if len(problems) > _SHOWN else ""
    return "\n".join(problems[:_SHOWN]) + more


def _require(record: Record | ValueError) -> Record:
    if isinstance(record, ValueError):
        raise record
    return record


def _records(
    path: str | Path, name: str, fmt: str | None, needed: Sequence[str]
) -> Iterator[tuple[int, Record | ValueError]]:
    """The records with the number of the line that each begins on; in place of a bad one, what is wrong with it."""
    fmt = fmt or ("jsonl" if str(path) == STANDARD_INPUT else FORMATS.get(Path(path).suffix.lower()))
    if fmt is None:
        if is_folder(Path(path)):
            raise DataError(f"{name}: is a folder; expected is a CSV or JSONL file")
        if not is_file(Path(path)):
            raise DataError(f"{name}: no such file or folder")
        raise DataError(f"{name}: is it CSV or JSONL? Name it .csv or .jsonl, or say --format")
    if fmt not in FORMATS.values():
        raise DataError(f"{name}: there is no format {fmt!r} of records; there are csv, jsonl")
    if fmt == "csv" and "tokens" in needed:
        raise DataError(
            f"{name}: tokens and their labels are lists, which CSV does not hold; use JSONL: {_example(needed)}"
        )
    try:
        with contextlib.ExitStack() as stack:
            file = sys.stdin.buffer if str(path) == STANDARD_INPUT else stack.enter_context(Path(path).open("rb"))
            lines = _lines(file, name)
            yield from _csv_records(lines, name, needed) if fmt == "csv" else _json_records(lines)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error


def _lines(file: BinaryIO, name: str) -> Iterator[str | ValueError]:
    """The lines of a file with their ends, one at a time; one that is too long is passed over."""
    number = 0
    while line := file.readline(_LINE_LIMIT):
        number += 1
        if len(line) == _LINE_LIMIT and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_LINE_LIMIT)
            yield ValueError(f"longer than {_LINE_LIMIT:,} bytes")
            continue
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, line {number}: not UTF-8; save the file as UTF-8") from error


def _json_records(lines: Iterable[str | ValueError]) -> Iterator[tuple[int, Record | ValueError]]:
    for number, line in enumerate(lines, 1):
        if isinstance(line, ValueError):
            yield number, line
        elif line.strip():
            yield number, _json_record(line)


def _json_record(line: str) -> Record | ValueError:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON ({error})")
    return cast("Record", record) if isinstance(record, dict) else ValueError("not a JSON object")


def _csv_records(
    lines: Iterable[str | ValueError], name: str, needed: Sequence[str]
) -> Iterator[tuple[int, Record | ValueError]]:
    """Records by RFC 4180 under a header; a record that cannot be parsed ends the file."""
    reader = csv.reader((_require_line(line) for line in lines), strict=True)
    header: list[str] = []
    begins = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield begins, ValueError(f"not CSV ({error})")
            return
        except ValueError as error:
            yield begins, error
            return
        if row and not header:
            header = _header([column.strip() for column in row], f"{name}, line {begins}", needed)
        elif row:
            fits = len(row) == len(header)
            wrong = ValueError(f"{len(row)} columns where the header has {len(header)}")
            yield begins, dict(zip(header, row, strict=True)) if fits else wrong
        begins = reader.line_num + 1


def _require_line(line: str | ValueError) -> str:
    if isinstance(line, ValueError):
        raise line
    return line


def _header(columns: list[str], where: str, needed: Sequence[str]) -> list[str]:
    missing = [column for column in needed if column not in columns]
    if missing:
        shown = ", ".join(columns) or "blank"
        raise DataError(
            f"{where}: the columns are {shown}; expected are {', '.join(needed)}, of which "
            f"{', '.join(missing)} is missing"
        )
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"{where}: the column {', '.join(twice)} is there twice")
    return columns


def _example(needed: Sequence[str]) -> str:
    examples = {"tokens": ["some", "words"], "labels": ["O", "B"]}
    return json.dumps({field: examples.get(field, "…") for field in needed}, ensure_ascii=False)


def text_field(record: Record, field: str) -> str:
    """A text that is not blank. Raises ValueError, as all of these do."""
    value = record.get(field)
    if value is None:
        raise ValueError(f"no field {field!r}; it has {', '.join(map(repr, record)) or 'none'}")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the field {field!r} must be a text that is not blank")
    if not is_unicode(value):
        raise ValueError(f"the field {field!r} is {NOT_UNICODE}")
    return value


def adapter_field(record: Record) -> str | None:
    """The field `adapter`; None where it is absent, null or blank."""
    value = record.get("adapter")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the field 'adapter' must be a name, not {shown(cast(object, value))}")
    return (value or "").strip() or None


def label_field(record: Record) -> str:
    """The field `label`, without space around it; a number is its text."""
    label = record.get("label")
    return text_field({**record, "label": str(label)} if isinstance(label, int | float) else record, "label").strip()


def texts_field(record: Record, field: str) -> tuple[str, ...]:
    """A list of texts that are not blank."""
    value = record.get(field)
    if not isinstance(value, list) or not value:
        raise ValueError(f"the field {field!r} must be a list of texts, not {shown(cast(object, value))}")
    return tuple(text_field({field: item}, field) for item in cast("list[Any]", value))


def shown(value: object) -> str:
    """A value in a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
