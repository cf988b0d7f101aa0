"""The resident memory of this process, now and at its peak; sizes in words."""

from __future__ import annotations

import ctypes
import functools
import mmap
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelora.errors import ConfigError

_STATUS = Path("/proc/self/status")
_COUNTS = Path("/proc/self/statm")
_ROLLUP = Path("/proc/self/smaps_rollup")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "256MB" (10⁶), "1.5GiB" (2³⁰) or "268435456".

    Raises:
        ConfigError: it is none of these, or nothing.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = "KMGT".find(found[2].upper()) + 1 if found and found[2] else 0
    size = 0 if found is None else int(float(found[1]) * (1024 if found[3] else 1000) ** unit)
    if size < 1 or (found is not None and found[3] and not found[2]):
        raise ConfigError(f"{text!r} is not a size of memory: write it as 256MB, 1.5GiB or a number of bytes")
    return size


def resident_memory() -> int | None:
    """Bytes that are resident now; None where the system does not say. Exact on Linux, page by page."""
    for path, field in ((_ROLLUP, "Rss:"), (_STATUS, "VmRSS:")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None


def resident_files() -> int:
    """Bytes of mapped files that are resident now, libraries' code included: quick, within some 256 KiB; Linux."""
    return int(_COUNTS.read_bytes().split()[2]) * mmap.PAGESIZE


def peak_memory() -> int | None:
    """Bytes; None where the system does not say.

    Linux: VmHWM. (`ru_maxrss` would include the parent's memory at the time of the fork, getrusage(2).)
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def trim_heap() -> None:
    """Give memory that was freed back to the system, where the C library would keep it (glibc)."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        function: Any = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_size_t,)
    return function
