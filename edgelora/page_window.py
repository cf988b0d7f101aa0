"""Frozen weights pass through a window: while a graph runs, about so many bytes of their pages are resident.

The pages are clean. One that was let go and is read again comes back from the system's cache of files, or from the
disk where memory is short: slower, and never wrong. So a model may be larger than the memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Generator, Sequence

from edgelora.mapped_pages import Range, can_give_back, give_back
from edgelora.memory import resident_files

_POLL = 0.002  # seconds
_RECENT = 8  # times that pages were let go, of which the least tells what else is resident of files
_FADES = 1 - 1 / 4096  # how much of the most that was read between two counts is expected at the next: half in 6 s
ROOM = 0.75  # of the window at most is kept free for what is read before it is counted


class PageWindow:
    """The mapped `ranges` of one graph, of which `size` bytes may be resident while it runs.

    What is read between two counts would come on top: rows of a token table, of which each brings in the pages around
    it, are megabytes at once, and so is what is read where the watching thread waits for a core. So everything goes as
    soon as there is no room for as much once more; before anything was counted, half of the window.

    May be used from several threads at once: they share the window.
    """

    def __init__(self, ranges: Sequence[Range], size: int) -> None:
        self._ranges, self._size = ranges, size
        self._passes = can_give_back() and sum(end - begin for begin, end in ranges) > size
        self._lock = threading.Lock()
        self._runs = 0
        self._others = deque[int](maxlen=_RECENT)
        self._leap = size / 2
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
                self._let_go()  # nobody reads yet
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
        """Let everything go whenever what may come until the next count would be too much."""
        before = self._others[-1]
        while not self._stop.wait(_POLL):
            now = resident_files()
            self._leap = max(now - before, self._leap * _FADES)
            if now > min(self._others) + self._size - min(self._leap, ROOM * self._size):
                self._let_go()
                now = self._others[-1]
            before = now

    def _let_go(self) -> None:
        """What remains are other files, libraries' code: it may grow, and the system may take it when memory is short.

        What is read before it is counted, where this thread must wait for a core, is not: the least of several counts.
        """
        give_back(self._ranges)
        self._others.append(resident_files())
