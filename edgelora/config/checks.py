"""What is wrong with values of settings, each in words for a person."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

from edgelora.patterns import MOST_PATTERNS, is_plain, pattern_problem

MAX_RANK = 1 << 16
MOST_NAMES = 10_000


def rank_problems(name: str, value: object) -> list[str]:
    """What is wrong with a rank."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK:
        return []
    return [f"{name} must be a whole number from 1 to {MAX_RANK}, not {short(value)}"]


def alpha_problems(name: str, value: object) -> list[str]:
    """What is wrong with a factor."""
    if is_number(value) and 0 < cast(float, value) < 1e30:
        return []
    return [f"{name} must be a number above 0, not {short(value)}"]


def map_problems(name: str, value: object, problems_of: Callable[[str, object], list[str]]) -> list[str]:
    """What is wrong with numbers by pattern; `problems_of` names what is wrong with one."""
    if not isinstance(value, Mapping):
        return [f"{name} must map patterns to numbers, not {short(value)}"]
    entries = cast(Mapping[object, object], value)
    problems: list[str] = []
    if len(entries) > MOST_NAMES or sum(isinstance(p, str) and not is_plain(p) for p in entries) > MOST_PATTERNS:
        return [f"{name} has more than {MOST_NAMES:,} entries, or {MOST_PATTERNS} that are patterns and no names"]
    for pattern, number in entries.items():
        problems += regex_problems(name, pattern)
        problems += problems_of(f"{name}[{short(pattern)}]", number)
    return problems


def pattern_problems(name: str, value: object) -> list[str]:
    """What is wrong with patterns of ids."""
    if isinstance(value, str):
        return regex_problems(name, value)
    return (
        [] if value is None or are_names(value) else [f"{name} must be a text or a tuple of names, not {short(value)}"]
    )


def dropout_problems(name: str, value: object) -> list[str]:
    """What is wrong with a probability to drop."""
    if is_number(value) and 0 <= cast(float, value) < 1:
        return []
    return [f"{name} must be in [0, 1), not {value!r}"]


def regex_problems(setting: str, pattern: object) -> list[str]:
    """What is wrong with one pattern."""
    if not isinstance(pattern, str):
        return [f"{setting}: {short(pattern)} is not a text"]
    problem = pattern_problem(pattern)
    return [] if problem is None else [f"{setting}: {problem}"]


def is_number(value: object) -> bool:
    """An int or a finite float; whether an int is small enough for a float is the caller's to bound."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
    )


def are_names(value: object) -> bool:
    """Whether it is a tuple of texts, and of no more than anyone needs."""
    return (
        isinstance(value, tuple)
        and len(cast(tuple[object, ...], value)) <= MOST_NAMES
        and all(isinstance(x, str) for x in cast(tuple[object, ...], value))
    )


def short(value: object) -> str:
    """A value for a message, at most 60 characters of it."""
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python prints
        return "an enormous number"
    return text if len(text) <= 60 else f"{text[:57]}…"
