"""Frozen weights pass through a window: while a graph runs, about so many bytes of their pages are resident.

The pages are clean. One that was let go and is read again comes back from the system's cache of files, or from the
disk where memory is short: slower, and never wrong. So a model may be larger than the memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Sequence

from edgelora.mapped_pages import Range, can_give_back, give_back
from edgelora.memory import resident_files

_POLL = 0.002  # seconds; what is read meanwhile, some megabytes, is resident beyond the window


class PageWindow:
    """The mapped `ranges` of one graph, of which `size` bytes may be resident while it runs.

    May be used from several threads at once: they share the window.
    """

    def __init__(self, ranges: Sequence[Range], size: int) -> None:
        self._ranges, self._size = ranges, size
        self._passes = can_give_back() and sum(end - begin for begin, end in ranges) > size
        self._lock = threading.Lock()
        self._runs, self._others = 0, 0
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def kept(self) -> Generator[None]:
        """Keep to the window until the end of the block. Where all weights fit, nothing is done."""
        if not self._passes:
            yield
            return
        self._begin()
        try:
            yield
        finally:
            self._end()

    def _begin(self) -> None:
        with self._lock:
            if self._watcher is None:
                self._stop.clear()
                give_back(self._ranges)
                self._others = resident_files()  # libraries' code, and nothing of the weights, which nobody reads yet
                watcher = threading.Thread(target=self._watch, name="edgelora-page-window", daemon=True)
                watcher.start()  # which fails where the system has no more threads
                self._watcher = watcher
            self._runs += 1

    def _end(self) -> None:
        with self._lock:
            self._runs -= 1
            if not self._runs and self._watcher is not None:
                self._stop.set()
                self._watcher.join()
                self._watcher = None

    def _watch(self) -> None:
        """Let everything go whenever it is too much."""
        while not self._stop.wait(_POLL):
            now = resident_files()
            self._others = min(self._others, now)
            if now > self._others + self._size:
                give_back(self._ranges)
