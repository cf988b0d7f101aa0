"""Files that samples and predictions are made of: found in folders, named by records, known by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelora.errors import DataError
from edgelora.paths import is_file, is_folder
from edgelora.records import Record, adapter_field, first_of, parse_records, source_name, text_field
from edgelora.samples import Named, OneLabel


@dataclass(frozen=True)
class FileSample(OneLabel):
    """A file and its label; `name` is its path in the data set (its file name, unless given)."""

    path: Path
    label: str
    name: str = ""

    def record(self) -> Any:
        return self.name or self.path.name, content_record(self.path), self.label


def labelled_files(folder: Path, suffixes: Sequence[str], what: str) -> list[FileSample]:
    """The files FOLDER/LABEL/… of these suffixes, in the order of their names; `what` is what messages call them.

    Hidden files and folders are passed over.

    Raises:
        DataError: there are none, or some lie in no label's folder.
    """
    found = [(path, path.relative_to(folder)) for path in _files(folder, suffixes)]
    loose = [f"{path}: lies in no folder that names its label" for path, name in found if len(name.parts) < 2]
    if loose:
        raise DataError(first_of(loose, what))
    if not found:
        raise DataError(f"{folder}: holds no {what}; expected is FOLDER/LABEL/FILE of {', '.join(suffixes)}")
    return [FileSample(path, name.parts[0], name.as_posix()) for path, name in found]


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of these suffixes that lie in the folder itself, sorted; hidden ones are passed over.

    Raises:
        DataError: it cannot be read.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error
    return [path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith(".")]


def file_field(record: Record, field: str, beside: Path) -> tuple[Path, str]:
    """The file that a record names, from the folder `beside`, and its name there. ValueError: there is none."""
    name = text_field(record, field).strip()
    path = beside / name
    if not is_file(path):
        raise ValueError(f"{path}: no such file")
    return path, name


def listed_files(path: str | Path, fmt: str | None, field: str) -> list[Named[Path]]:
    """The files that a field of records names, from the folder of `path` on. Raises as `parse_records`."""
    beside = Path(path).parent

    def parse(record: Record) -> tuple[Path, str | None]:
        return file_field(record, field, beside)[0], adapter_field(record)

    lines = parse_records(path, fmt, parse, (field,))
    return [Named(file, adapter, f"{source_name(path)}, line {line}") for line, (file, adapter) in lines]


def given_files(words: Sequence[Named[str]], suffixes: Sequence[str], what: str) -> list[Named[Path]]:
    """Files, and all those of these suffixes in folders, in the order of their names.

    Raises:
        DataError: there is no such file, or a folder holds none.
    """
    files: list[Named[Path]] = []
    problems: list[str] = []
    for word in words:
        path = Path(word.content)
        if is_folder(path):
            inside = list(_files(path, suffixes))
            problems += [] if inside else [f"{path}: holds no {what} ({', '.join(suffixes)})"]
            files += [Named(file, word.adapter, word.where) for file in inside]
        elif is_file(path):
            files.append(Named(path, word.adapter, word.where))
        else:
            problems.append(f"{path}: no such file or folder")
    if problems:
        raise DataError(first_of(problems, what))
    return files


def content_record(path: Path) -> str:
    """sha256 (hex) of a file's content: what tells it apart in a digest of data.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _files(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """The folder's files of these suffixes, also in folders inside, sorted; hidden ones are passed over."""
    try:
        paths = sorted(folder.rglob("*"))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error
    for path in paths:
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            yield path
