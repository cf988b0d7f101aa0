"""Whose adapter a line is for: the record says so, or the command line, for all lines or for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelora.errors import ConfigError, DataError, StoreError
from edgelora.records import first_of
from edgelora.samples import Named
from edgelora.store import AdapterStore


@dataclass(frozen=True)
class Choice:
    """An adapter for each line (None: the base), and whether the lines were told apart."""

    adapters: tuple[str | None, ...]
    by_line: bool


def choose_adapters(
    lines: Sequence[Named[Any]], given: Sequence[str], file: str | None, store: AdapterStore, what: str
) -> Choice:
    """The adapter of every line: its own, that of `file` (a name a line), one of `given` for each, or the one for all.

    `what` is what messages call the lines.

    Raises:
        ConfigError: names from several places, or another number of names than of lines.
        DataError: adapters that the store does not have, by file and line; the file cannot be read.
    """
    own = any(line.adapter is not None for line in lines)
    each = len(given) > 1 or file is not None
    if own and each:
        raise ConfigError(
            "the records name adapters of their own: leave --adapters-file out, and give at most one --adapter, for "
            "the records without"
        )
    if file is not None and given:
        raise ConfigError("--adapter and --adapters-file both name the adapters: give one of them")
    if file is not None:
        named = read_names(file)
    elif each:
        named = [Named(None, name, f"--adapter {number}") for number, name in enumerate(given, 1)]
    else:
        default = given[0] if given else None
        named = [Named(None, line.adapter or default, line.where if line.adapter else "") for line in lines]
    if len(named) != len(lines):
        raise ConfigError(f"{len(named)} adapters for {len(lines)} {what}: give one for all, or one for each")
    _check_known(named, store)
    return Choice(tuple(one.adapter for one in named), own or each)


def read_names(file: str) -> list[Named[None]]:
    """A name from each line of a file; a blank line stands for the base.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        text = Path(file).read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8; save the file as UTF-8") from error
    return [Named(None, line.strip() or None, f"{file}, line {n}") for n, line in enumerate(text.splitlines(), 1)]


def _check_known(named: Sequence[Named[None]], store: AdapterStore) -> None:
    """Raise unless the store has every adapter; a name from a line is told with the first line that has it."""
    first: dict[str, str] = {}
    for one in named:
        if one.adapter is not None:
            first.setdefault(one.adapter, one.where)
    problems: list[str] = []
    for name, where in first.items():
        try:
            store.current_version(name)
        except StoreError as error:
            if not where:
                raise
            problems.append(f"{where}: {error}")
    if problems:
        raise DataError(first_of(problems, "unknown adapters"))
