"""Values of options that are made of words: patterns, NAME=NUMBER, A=B, SETTING=VALUE."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from edgelora.errors import ConfigError, DataError

N = TypeVar("N", int, float)


def patterns(given: list[str] | None) -> str | tuple[str, ...] | None:
    """Patterns as PEFT takes them: names, or one string: a regular expression, or all-linear. "none" is no point."""
    if given is None:
        return None
    if len(given) == 1 and given[0].startswith("re:"):
        return given[0].removeprefix("re:")
    if given == ["none"]:
        return ()
    return "all-linear" if given == ["all-linear"] else tuple(given)


def pattern_values(given: list[str] | None, number: Callable[[str], N]) -> dict[str, N]:
    """PATTERN=NUMBER words as a mapping.

    Raises:
        ConfigError: a word has another form.
    """
    values: dict[str, N] = {}
    for word in given or ():
        name, _, value = word.rpartition("=")
        try:
            values[name] = number(value)
        except ValueError:
            name = ""
        if not name:
            kind = "WHOLE NUMBER" if number is int else "NUMBER"
            raise ConfigError(f"{word!r} is not PATTERN={kind}, as in query=16")
    return values


def name_pairs(given: list[str]) -> tuple[tuple[str, str], ...]:
    """A=B words as pairs.

    Raises:
        ConfigError: a word has another form.
    """
    pairs: list[tuple[str, str]] = []
    for word in given:
        first, _, second = (part.strip() for part in word.partition("="))
        if not first or not second:
            raise ConfigError(f"{word!r} is not A=B, as in leftear=rightear")
        pairs.append((first, second))
    return tuple(pairs)


def numbers(given: list[str]) -> dict[str, float]:
    """NAME=NUMBER, as `--fix` takes them.

    Raises:
        DataError: one is of another form.
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise DataError(f"--fix {text}: it takes NAME=NUMBER, as in --fix sequence=512")
    return found


def texts_by_name(option: str, given: list[str]) -> dict[str, str]:
    """SETTING=VALUE, as `option` takes them.

    Raises:
        DataError: one is of another form.
    """
    pairs = [text.partition("=") for text in given]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise DataError(f"{option} {wrong[0]}: it takes SETTING=VALUE")
    return {name: value for name, _, value in pairs}
