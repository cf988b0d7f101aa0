"""The pages of a weights file that a session has mapped: which they are, and giving them back.

A page that was read stays resident although it can be read again from the file at any time. Giving it back between
runs keeps to the resident set what one run reads: of a token table, a few rows. Linux only; elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Range = tuple[int, int]  # the first address, and the first behind
_MAPS = Path("/proc/self/maps")
_DONT_NEED = 4


def mapped_ranges(folder: Path) -> list[Range]:
    """Where files of `folder` are mapped into this process, by rising addresses; empty where it is not told.

    ONNX Runtime maps weights so that it could write to its own copy of a page, which it does on big-endian systems
    alone, to swap bytes: there nothing is told.
    """
    if sys.byteorder != "little":
        return []
    inside = f"{str(folder).rstrip('/')}/"  # a process has thousands of mappings: few are looked at
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found: list[Range] = []
    for line in lines:
        fields = line.split(maxsplit=5) if inside in line else []
        if len(fields) == 6 and fields[1] in ("r--p", "rw-p") and Path(fields[5]).parent == folder:
            begin, _, end = fields[0].partition("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


def added(before: Sequence[Range], after: Sequence[Range]) -> list[Range]:
    """What `after` covers and `before` does not. The system joins neighbouring mappings, so ranges are cut."""
    remaining = list(after)
    for low, high in before:
        cut = [[(begin, min(end, low)), (max(begin, high), end)] for begin, end in remaining]
        remaining = [(begin, end) for pair in cut for begin, end in pair if begin < end]
    return remaining


def give_back(ranges: Sequence[Range]) -> None:
    """Let go of the resident pages of file mappings that nobody writes to; the next read brings them in again."""
    advise = _madvise()
    if advise is not None:
        for begin, end in ranges:
            advise(begin, end - begin, _DONT_NEED)


def can_give_back() -> bool:
    """Whether this system lets pages go."""
    return _MAPS.exists() and _madvise() is not None


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not _MAPS.exists():
        return None
    try:
        function: Any = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
