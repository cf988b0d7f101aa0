"""Samples from CSV and JSONL, from a file or standard input; a bad line is named by file and number."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConfigError, DataError

T = TypeVar("T")
_LINE_LIMIT = 1 << 20  # bytes
_LARGEST = float(np.finfo(np.float32).max)
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
S = TypeVar("S", bound=Sample)
Record = dict[str, Any]
_FIELDS = {
    "sequence-classification": ("text", "label"),
    "regression": ("text", "label"),
    "token-classification": ("tokens", "labels"),
    "sentence-embedding": ("anchor", "positive"),
}


@dataclass(frozen=True)
class Named(Generic[T]):
    """What a record holds, the adapter that it names (field `adapter`), and where it stands: file and line."""

    content: T
    adapter: str | None
    where: str


def read_samples(path: str | Path, task: str, fmt: str | None = None) -> list[Sample]:
    """Read the samples of a task; `path` "-" is standard input, whose format is JSONL unless given.

    Fields: text and label; for token classification tokens and labels (JSONL); for sentence embedding
    anchor, positive and, in all samples or none, negative. A line may hold 1 MiB, a field of CSV what the
    csv module allows (128 KiB). Text is UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file cannot be read, is empty, lacks a field, or has bad lines (the first ones are
            listed with file and line number). ConfigError: the task has no data format.
    """
    return _alike(path, [sample for _, sample in _parse_all(path, fmt, _parser(task), _FIELDS[task])])


def read_named_samples(path: str | Path, task: str, fmt: str | None = None) -> list[Named[Sample]]:
    """The samples of a task as `read_samples` has them, with the adapters that the fields `adapter` name."""
    parse = _parser(task)
    lines = _parse_all(path, fmt, lambda record: (parse(record), _adapter(record)), _FIELDS[task])
    _alike(path, [sample for _, (sample, _) in lines])
    return [Named(sample, adapter, f"{_name(path)}, line {line}") for line, (sample, adapter) in lines]


def _parser(task: str) -> Callable[[Record], Sample]:
    if task not in _FIELDS:
        raise ConfigError(f"the task {task!r} has no data format of its own: train it through the Python API")
    parsers: dict[str, Callable[[Record], Sample]] = {
        "sequence-classification": _text_sample,
        "regression": _number_sample,
        "token-classification": _token_sample,
        "sentence-embedding": _pair_sample,
    }
    return parsers[task]


def _alike(path: str | Path, samples: list[Sample]) -> list[Sample]:
    """The samples, all with a negative or none."""
    with_negative = sum(isinstance(s, PairSample) and s.negative is not None for s in samples)
    if with_negative not in (0, len(samples)):
        raise DataError(
            f"{path}: {with_negative} of {len(samples)} samples have a negative: give one in all or in none"
        )
    return samples


def read_texts(path: str | Path, fmt: str | None = None) -> list[str]:
    """The field `text` of every record. Raises DataError as `read_samples` does."""
    return [text for _, text in _parse_all(path, fmt, lambda record: _text(record, "text"), ("text",))]


def read_named_texts(path: str | Path, fmt: str | None = None) -> list[Named[str]]:
    """The fields `text` and, where there is one, `adapter` of every record. Raises DataError as `read_samples` does."""
    lines = _parse_all(path, fmt, lambda record: (_text(record, "text"), _adapter(record)), ("text",))
    return [Named(text, adapter, f"{_name(path)}, line {line}") for line, (text, adapter) in lines]


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


def split(samples: Sequence[S], share: float, rng: np.random.Generator) -> tuple[list[S], list[S]]:
    """(training, held out), each in the order of `samples`: `share` of each label, at least one of either side
    where the label has two samples; a label of one is trained.

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
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held += [int(row) for row in rows[:count]]
    chosen = set(held)
    train = [s for row, s in enumerate(samples) if row not in chosen]
    if not train or not held:
        raise ConfigError(f"{len(samples)} samples are too few to hold out {share:g} of them")
    return train, [samples[row] for row in sorted(chosen)]


def _name(path: str | Path) -> str:
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def _parse_all(
    path: str | Path, fmt: str | None, parse: Callable[[Record], T], needed: Sequence[str]
) -> list[tuple[int, T]]:
    """What the records hold, with the number of the line that each begins on."""
    name = _name(path)
    samples: list[tuple[int, T]] = []
    problems: list[str] = []
    bad = 0
    for line, record in _records(path, name, fmt, needed):
        try:
            samples.append((line, parse(_require(record))))
        except ValueError as error:
            bad += 1
            problems += [f"{name}, line {line}: {error}"] if bad <= _SHOWN else []
    if problems:
        more = f"\nand {bad - _SHOWN:,} more bad lines" if bad > _SHOWN else ""
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
    """The records with the number of the line that each begins on; in place of a bad one, what is wrong with it."""
    fmt = fmt or ("jsonl" if str(path) == STANDARD_INPUT else FORMATS.get(Path(path).suffix.lower()))
    if fmt is None:
        raise DataError(f"{name}: is it CSV or JSONL? Name it .csv or .jsonl, or say --format")
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


def _text(record: Record, field: str) -> str:
    value = record.get(field)
    if value is None:
        raise ValueError(f"no field {field!r}; it has {', '.join(map(repr, record)) or 'none'}")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the field {field!r} must be a text that is not blank")
    return _unicode(value, field)


def _adapter(record: Record) -> str | None:
    """The field `adapter`; None where it is absent, null or blank."""
    value = record.get("adapter")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the field 'adapter' must be a name, not {_short(cast(object, value))}")
    return (value or "").strip() or None


def _unicode(text: str, field: str) -> str:
    """The text, if it is valid: JSON may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the field {field!r} is not valid Unicode") from None
    return text


def _text_sample(record: Record) -> TextSample:
    label = record.get("label")
    if isinstance(label, int | float):
        record = {**record, "label": str(label)}
    return TextSample(_text(record, "text"), _text(record, "label").strip())


def _number_sample(record: Record) -> NumberSample:
    text, value = _text(record, "text"), record.get("label")
    numbers = cast("list[Any]", value if isinstance(value, list) else [value])
    try:
        target = tuple(float(number) for number in numbers)
    except (TypeError, ValueError, OverflowError):
        target = ()
    if not target or not all(abs(number) <= _LARGEST for number in target):
        raise ValueError(f"the field 'label' must be a number that float32 holds, not {_short(cast(object, value))}")
    return NumberSample(text, target)


def _token_sample(record: Record) -> TokenSample:
    words, labels = _names(record, "tokens"), _names(record, "labels")
    if len(words) != len(labels):
        raise ValueError(f"{len(words)} tokens and {len(labels)} labels: one label per token is expected")
    return TokenSample(words, labels)


def _names(record: Record, field: str) -> tuple[str, ...]:
    value = record.get(field)
    if not isinstance(value, list) or not value:
        raise ValueError(f"the field {field!r} must be a list of texts, not {_short(cast(object, value))}")
    return tuple(_text({field: item}, field) for item in cast("list[Any]", value))


def _pair_sample(record: Record) -> PairSample:
    negative = record.get("negative")
    return PairSample(
        _text(record, "anchor"),
        _text(record, "positive"),
        None if negative in (None, "") else _text(record, "negative"),
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
