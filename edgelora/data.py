"""Samples from CSV and JSONL, from a file or standard input; a bad line is named by file and number."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConfigError, DataError

_LINE_LIMIT = 1 << 20
_SHOWN = 5
STANDARD_INPUT = "-"
FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


@dataclass(frozen=True)
class TextSample:
    """A text and its label."""

    text: str
    label: str


@dataclass(frozen=True)
class NumberSample:
    """A text and the number, or the numbers, to predict from it."""

    text: str
    target: tuple[float, ...]


@dataclass(frozen=True)
class TokenSample:
    """Words and a label for each."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class PairSample:
    """Texts that belong together, and one that does not."""

    anchor: str
    positive: str
    negative: str | None


Sample = TextSample | NumberSample | TokenSample | PairSample
Record = dict[str, Any]
_FIELDS = {
    "sequence-classification": ("text", "label"),
    "regression": ("text", "label"),
    "token-classification": ("tokens", "labels"),
    "sentence-embedding": ("anchor", "positive"),
}


def read_samples(path: str | Path, task: str, fmt: str | None = None) -> list[Sample]:
    """Read the samples of a task; `path` "-" is standard input, whose format is JSONL unless given.

    Fields: text and label; for token classification tokens and labels (JSONL); for sentence embedding
    anchor, positive and, in all samples or none, negative.

    Raises:
        DataError: the file cannot be read, is empty, lacks a field, or has bad lines (the first ones are
            listed with file and line number).
    """
    if task not in _FIELDS:
        raise ConfigError(f"the task {task!r} has no data format of its own: train it through the Python API")
    parse: Callable[[Record], Sample] = {
        "sequence-classification": _text_sample,
        "regression": _number_sample,
        "token-classification": _token_sample,
        "sentence-embedding": _pair_sample,
    }[task]
    samples = _parse_all(path, fmt, parse, _FIELDS[task])
    with_negative = sum(isinstance(s, PairSample) and s.negative is not None for s in samples)
    if with_negative not in (0, len(samples)):
        raise DataError(
            f"{path}: {with_negative} of {len(samples)} samples have a negative: give one in all or in none"
        )
    return samples


def read_texts(path: str | Path, fmt: str | None = None) -> list[str]:
    """The field `text` of every record. Raises DataError as `read_samples` does."""
    return _parse_all(path, fmt, lambda record: _text(record, "text"), ("text",))


def digest(samples: Sequence[Sample]) -> str:
    """sha256 of the samples, in their order."""
    body = json.dumps([astuple(sample) for sample in samples], ensure_ascii=False)
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


def labels_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The labels that occur, sorted."""
    found: set[str] = set()
    for sample in samples:
        if isinstance(sample, TextSample):
            found.add(sample.label)
        elif isinstance(sample, TokenSample):
            found.update(sample.labels)
    return tuple(sorted(found))


def split(samples: Sequence[Sample], share: float, rng: np.random.Generator) -> tuple[list[Sample], list[Sample]]:
    """(training, held out), `share` of each label held out, at least one sample of a label that has two.

    Raises:
        ConfigError: the share is not in (0, 1), or nothing would be left on one side.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the validation split must be above 0 and below 1, not {share}")
    groups: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(sample.label if isinstance(sample, TextSample) else "", []).append(row)
    held: list[int] = []
    for label in sorted(groups):
        rows: NDArray[np.int64] = rng.permutation(np.asarray(groups[label]))
        count = max(round(share * len(rows)), 1) if len(rows) > 1 else 0
        held += [int(row) for row in rows[:count]]
    chosen = set(held)
    train = [s for row, s in enumerate(samples) if row not in chosen]
    if not train or not held:
        raise ConfigError(f"{len(samples)} samples are too few to hold out {share:g} of them")
    return train, [samples[row] for row in sorted(chosen)]


def _parse_all(path: str | Path, fmt: str | None, parse: Callable[[Record], Any], needed: Sequence[str]) -> list[Any]:
    name = "standard input" if str(path) == STANDARD_INPUT else str(path)
    samples: list[Any] = []
    problems: list[str] = []
    bad = 0
    for line, record in _records(path, name, fmt, needed):
        try:
            samples.append(parse(_require(record)))
        except ValueError as error:
            bad += 1
            if bad <= _SHOWN:
                problems.append(f"{name}, line {line}: {error}")
    if problems:
        more = f"\nand {bad - _SHOWN} more" if bad > _SHOWN else ""
        raise DataError("\n".join(problems) + more)
    if not samples:
        raise DataError(f"{name}: holds no samples; one line is {_example(needed)}")
    return samples


def _require(record: Record | ValueError) -> Record:
    if isinstance(record, ValueError):
        raise record
    return record


def _records(
    path: str | Path, name: str, fmt: str | None, needed: Sequence[str]
) -> Iterator[tuple[int, Record | ValueError]]:
    fmt = fmt or ("jsonl" if str(path) == STANDARD_INPUT else FORMATS.get(Path(path).suffix.lower()))
    if fmt is None:
        raise DataError(f"{name}: is it CSV or JSONL? Name it .csv or .jsonl, or say --format")
    text = _read_text(path, name)
    if fmt == "csv":
        yield from _csv_records(text, name, needed)
    else:
        yield from _json_records(text)


def _read_text(path: str | Path, name: str) -> str:
    try:
        content = sys.stdin.buffer.read() if str(path) == STANDARD_INPUT else Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: not UTF-8; save the file as UTF-8") from error


def _json_records(text: str) -> Iterator[tuple[int, Record | ValueError]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if len(line) > _LINE_LIMIT:
            yield number, ValueError(f"longer than {_LINE_LIMIT:,} characters")
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, ValueError(f"not JSON ({error})")
            continue
        if isinstance(record, dict):
            yield number, record  # pyright: ignore[reportUnknownVariableType]
        else:
            yield number, ValueError("not a JSON object")


def _csv_records(text: str, name: str, needed: Sequence[str]) -> Iterator[tuple[int, Record | ValueError]]:
    csv.field_size_limit(_LINE_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader)]
    except StopIteration:
        return
    except csv.Error as error:
        raise DataError(f"{name}, line 1: not CSV ({error})") from error
    missing = [column for column in needed if column not in header]
    if missing:
        raise DataError(f"{name}, line 1: the columns are {', '.join(header)}; {', '.join(missing)} is expected")
    line = reader.line_num + 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, ValueError(f"not CSV ({error})")
            return
        if row:
            if len(row) == len(header):
                yield line, dict(zip(header, row, strict=True))
            else:
                yield line, ValueError(f"{len(row)} columns where the header has {len(header)}")
        line = reader.line_num + 1


def _example(needed: Sequence[str]) -> str:
    examples = {"tokens": ["some", "words"], "labels": ["O", "B"]}
    return json.dumps({field: examples.get(field, "…") for field in needed}, ensure_ascii=False)


def _text(record: Record, field: str) -> str:
    value = record.get(field)
    if value is None:
        raise ValueError(f"no field {field!r}; it has {', '.join(record) or 'none'}")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the field {field!r} must be a text that is not blank")
    return value


def _text_sample(record: Record) -> TextSample:
    text, label = _text(record, "text"), record.get("label")
    if isinstance(label, int | float | bool):
        label = str(label)
    if not isinstance(label, str) or not label.strip():
        raise ValueError("no field 'label'" if label is None else "the field 'label' must be a name that is not blank")
    return TextSample(text, label.strip())


def _number_sample(record: Record) -> NumberSample:
    value = record.get("label")
    numbers: list[Any] = value if isinstance(value, list) else [value]  # pyright: ignore[reportUnknownVariableType]
    try:
        target = tuple(float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the field 'label' must be a number, not {value!r}") from error
    if not target or not np.isfinite(target).all():
        raise ValueError(f"the field 'label' must be a finite number, not {value!r}")
    return NumberSample(_text(record, "text"), target)


def _token_sample(record: Record) -> TokenSample:
    words, labels = record.get("tokens"), record.get("labels")
    for field, value in (("tokens", words), ("labels", labels)):
        if not isinstance(value, list) or not all(isinstance(x, str) and x for x in value):  # pyright: ignore[reportUnknownVariableType]
            raise ValueError(f"the field {field!r} must be a list of texts")
    assert isinstance(words, list) and isinstance(labels, list)
    if len(words) != len(labels) or not words:  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(f"{len(words)} tokens and {len(labels)} labels: one label per token is expected")  # pyright: ignore[reportUnknownArgumentType]
    return TokenSample(tuple(words), tuple(labels))  # pyright: ignore[reportUnknownArgumentType]


def _pair_sample(record: Record) -> PairSample:
    negative = record.get("negative")
    return PairSample(
        _text(record, "anchor"),
        _text(record, "positive"),
        None if negative in (None, "") else _text(record, "negative"),
    )
