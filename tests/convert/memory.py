"""A bound on what Python and numpy hold at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_below(most: int) -> Iterator[None]:
    """Fails if `most` bytes or more are allocated at once inside."""
    tracemalloc.start()
    try:
        yield
        found = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found < most, f"{found:,} bytes at once, of {most:,}"
