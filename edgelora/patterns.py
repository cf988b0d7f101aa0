"""Regular expressions of settings, matched in bounded time whatever they are.

An adapter's settings come from others, and Python's own matcher tries the ways to match one by one: `(a+)+b` takes it
longer than a lifetime. Here a part of a pattern is a relation between positions of the name, "from here it may end
there", which is computed once for each position. What is found is what `re` finds. Back references and conditions
are no relation of positions: patterns that have them are refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from edgelora.errors import ConfigError

_parser, _compiler, _constants = (getattr(re, name) for name in ("_parser", "_compiler", "_constants"))

LONGEST = 2000
MOST_PATTERNS = 64  # of one setting, beside plain names
_LONGEST_NAME = 1000
_MOST_STEPS = 200_000
_PLAIN = re.compile(r"\^?(?:[\w.\-]|\\[.\-dDwWsS])*\$?")  # no choice, no repetition: `re` takes a step a character
_ONE = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"})
_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT"})
_LOOKS = frozenset({"ASSERT", "ASSERT_NOT"})

Ends = Callable[["_Matching", int], int]  # from a position to the set of those where a part may end, as bits


def is_plain(pattern: str) -> bool:
    """Whether a pattern is a name, with at most dots and classes of characters."""
    return _PLAIN.fullmatch(pattern) is not None


def pattern_problem(pattern: str) -> str | None:
    """Why a pattern cannot be used, or None."""
    try:
        _compiled(pattern)
    except ConfigError as error:
        return str(error)
    return None


def fullmatch(pattern: str, name: str) -> bool:
    """Whether the whole name matches, as `re.fullmatch` says.

    Raises:
        ConfigError: not a regular expression, or one that would take too long.
    """
    return _matches(pattern, name, (0,))


def suffix_match(pattern: str, name: str) -> bool:
    """Whether the name, or what follows one of its dots, matches as a whole: PEFT's `(.*\\.)?(pattern)$`.

    Raises:
        ConfigError: as `fullmatch`.
    """
    return _matches(pattern, name, (0, *(i + 1 for i, character in enumerate(name) if character == ".")))


def _matches(pattern: str, name: str, starts: tuple[int, ...]) -> bool:
    compiled = _compiled(pattern)
    if isinstance(compiled, re.Pattern):
        return any(compiled.fullmatch(name, start) for start in starts)
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f"{name[:40]!r}… is longer than a name that patterns are matched with")
    return _related(pattern, name, starts)


@functools.lru_cache(4096)
def _related(pattern: str, name: str, starts: tuple[int, ...]) -> bool:
    ends = cast("Ends", _compiled(pattern))
    matching = _Matching(name, pattern)
    return any(ends(matching, start) >> len(name) & 1 for start in starts)


class _Matching:
    """A name, and what is known of it so far."""

    def __init__(self, name: str, pattern: str) -> None:
        self.name, self.pattern = name, pattern
        self.known: dict[tuple[int, int], int] = {}
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise ConfigError(
                f"the pattern {self.pattern[:60]!r} takes too long to match {self.name[:60]!r}: simplify it"
            )


@functools.lru_cache(512)
def _compiled(pattern: str) -> re.Pattern[str] | Ends:
    if len(pattern) > LONGEST:
        raise ConfigError(f"{pattern[:40]!r}… is longer than {LONGEST:,} characters")
    try:
        if is_plain(pattern):
            return re.compile(pattern)
        parsed = _parser.parse(pattern)
        return _sequence(parsed, parsed.state.flags, parsed)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{pattern[:60]!r} is not a regular expression ({error})") from error


def _sequence(items: Sequence[Any], flags: int, whole: Any) -> Ends:
    parts = [_part(str(operation), argument, flags, whole) for operation, argument in items]

    def ends(matching: _Matching, start: int) -> int:
        reached = 1 << start
        for part in parts:
            if not reached:
                break
            reached = _union(part, matching, reached)
        return reached

    return _once(ends)


def _part(operation: str, argument: Any, flags: int, whole: Any) -> Ends:
    if operation in _ONE:
        return _character(operation, argument, flags, whole)
    if operation == "BRANCH":
        return _branch([_sequence(items, flags, whole) for items in argument[1]])
    if operation == "SUBPATTERN":
        _, added, removed, items = argument
        return _sequence(items, (flags | added) & ~removed, whole)
    if operation in _REPEATS:
        least, most, items = argument
        return _repeat(int(least), int(most), _sequence(items, flags, whole))
    if operation in _LOOKS:
        direction, items = argument
        return _look(int(direction), operation == "ASSERT", _sequence(items, flags, whole))
    raise ConfigError(
        f"back references, conditions and possessive parts ({operation.lower()}) cannot be matched in bounded time"
    )


def _character(operation: str, argument: Any, flags: int, whole: Any) -> Ends:
    """One character, or a place between two: what `re` itself decides in one step."""
    one = _parser.SubPattern(whole.state, [(getattr(_constants, operation), argument)])
    single = cast("re.Pattern[str]", _compiler.compile(one, flags))

    def ends(matching: _Matching, start: int) -> int:
        found = single.match(matching.name, start)
        return 0 if found is None else 1 << found.end()

    return _once(ends)


def _branch(choices: list[Ends]) -> Ends:
    def ends(matching: _Matching, start: int) -> int:
        reached = 0
        for choice in choices:
            reached |= choice(matching, start)
        return reached

    return _once(ends)


def _repeat(least: int, most: int, body: Ends) -> Ends:
    """After as many rounds as there are positions, one more reaches nothing new: larger counts are cut there."""

    def ends(matching: _Matching, start: int) -> int:
        rounds = len(matching.name) + 1
        reached = 1 << start
        for _ in range(min(least, rounds)):
            reached = _union(body, matching, reached)
        fresh = reached
        for _ in range(min(most - least, rounds)):
            fresh = _union(body, matching, fresh) & ~reached
            if not fresh:
                break
            reached |= fresh
        return reached

    return _once(ends)


def _look(direction: int, wanted: bool, body: Ends) -> Ends:
    """A condition on what follows, or on what stands before."""

    def ends(matching: _Matching, start: int) -> int:
        if direction > 0:
            found = body(matching, start) != 0
        else:
            found = any(body(matching, begin) >> start & 1 for begin in range(start + 1))
        return 1 << start if found == wanted else 0

    return _once(ends)


def _union(part: Ends, matching: _Matching, starts: int) -> int:
    """Where a part may end that begins at one of these positions."""
    reached = 0
    for start in _positions(starts):
        reached |= part(matching, start)
    return reached


def _positions(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _once(ends: Ends) -> Ends:
    """Each position is looked at once."""

    def known(matching: _Matching, start: int) -> int:
        matching.step()
        key = id(known), start
        if key not in matching.known:
            matching.known[key] = ends(matching, start)
        return matching.known[key]

    return known
