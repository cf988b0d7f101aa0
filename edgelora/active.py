"""Adapters ready to feed, and a cache of those used last that is bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelora.manifest import LORA_GRAPHS


@dataclass(frozen=True)
class ActiveAdapter:
    """An adapter ready to feed: graph inputs by name, the labels of its head, and the set of graphs that takes it."""

    feeds: Mapping[str, NDArray[np.float32]]
    labels: tuple[str, ...] | None
    has_head: bool
    graphs: str = LORA_GRAPHS

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in self.feeds.values())


class AdapterCache:
    """The adapters used last, together at most `limit` bytes; one that is larger alone is not kept.

    May be used from several threads at once. An adapter that falls out lives on where it is in use.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._kept: OrderedDict[Hashable, ActiveAdapter] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> ActiveAdapter | None:
        """The adapter, which becomes the one used last, or None."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def put(self, key: Hashable, active: ActiveAdapter) -> None:
        """Keep the adapter, and forget those that were not used for longest until all fit."""
        if active.size > self.limit:
            return
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = active
            self.size += active.size
            while self.size > self.limit:
                self.size -= self._kept.popitem(last=False)[1].size
