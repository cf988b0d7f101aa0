"""Batches in which every row may have an adapter of its own: which rows run together, and adapters side by side."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgelora.active import ActiveAdapter
from edgelora.manifest import MIXED_INDEX, Manifest

# Measured (docs/decisions/0016): below as many positions, a run of their own costs rows more than a mixed batch does.
ALONE = 96
_MOST_SLOTS = 4096

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Batch:
    """Rows that one run of a graph answers, and for each the key of its adapter."""

    rows: tuple[int, ...]
    keys: tuple[Hashable, ...]

    @property
    def is_mixed(self) -> bool:
        """Whether the rows have several adapters."""
        return len(set(self.keys)) > 1


def plan_batches(keys: Sequence[Hashable], most: int, alone: int) -> list[Batch]:
    """Every row once: rows of one adapter together, what is left over of several adapters in mixed batches.

    A batch has at most `most` rows, in order. A rest of an adapter's rows joins others if it has fewer than `alone`
    rows; with `alone` 0, none does.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    batches: list[Batch] = []
    rest: list[int] = []
    for key, rows in groups.items():
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            if len(part) < min(alone, most):
                rest += part
            else:
                batches.append(Batch(tuple(part), (key,) * len(part)))
    for start in range(0, len(rest), most):
        part = sorted(rest[start : start + most])
        batches.append(Batch(tuple(part), tuple(keys[row] for row in part)))
    return batches


class AdapterStack:
    """Adapters side by side, for the graph of mixed batches: the arrays, and which adapter stands where.

    Slot 0 holds no adapter, all zeros. An adapter that is there is not copied again; those not used for longest make
    room. All arrays together take at most `limit` bytes, and no more of the machine's memory than was written. Ranks
    and heads are those of the largest adapter, smaller ones are padded: with zeros, and a head's bias with −inf. May be
    used from several threads at once: a slot that a run reads is not written.
    """

    def __init__(self, manifest: Manifest, limit: int) -> None:
        self.limit = limit
        self.copied = 0  # adapters written into slots since the stack was made
        self._manifest = manifest
        self._lock = threading.Lock()
        self._slots: _Slots | None = None

    @contextlib.contextmanager
    def loaded(
        self, keys: Sequence[Hashable], adapters: Mapping[Hashable, ActiveAdapter]
    ) -> Generator[dict[str, NDArray[np.generic]] | None]:
        """The adapters' feeds for rows with these keys (None: no adapter); None where they do not fit.

        While the context is open, the slots stay as they are.
        """
        needed = list(dict.fromkeys(key for key in keys if key is not None))
        with self._lock:
            slots = self._made_for([adapters[key] for key in needed])
            fits = slots is not None and slots.make_room(needed)
            if slots is not None and fits:
                self.copied += slots.write(needed, adapters)
                slots.pins.update(needed)
        if slots is None or not fits:
            yield None
            return
        try:
            numbers = [0 if key is None else slots.taken[key] for key in keys]
            yield {**slots.arrays, MIXED_INDEX: np.array(numbers, np.int64)}
        finally:
            with self._lock:
                slots.pins.subtract(needed)

    def _made_for(self, adapters: Sequence[ActiveAdapter]) -> _Slots | None:
        """The slots, made anew where an adapter is too large for them, or all need less than half of their width."""
        shapes = _largest_shapes(self._manifest, adapters)
        size, now = _size(shapes), self._slots
        if now is not None and now.has_room_for(shapes) and 2 * size > _size(now.shapes):
            return now
        count = min(self.limit // size if size else _MOST_SLOTS, _MOST_SLOTS)
        if count < 2:
            return None
        self._slots = _Slots(shapes, count, self._manifest.head.bias if self._manifest.head is not None else "")
        return self._slots


@dataclass
class _Slots:
    """Arrays `[count, …]` by input name, and which slot is whose, in the order of last use."""

    shapes: Mapping[str, tuple[int, ...]]
    count: int
    bias: str
    arrays: dict[str, NDArray[np.float32]] = field(init=False)
    taken: OrderedDict[Hashable, int] = field(default_factory=OrderedDict[Hashable, int])
    pins: Counter[Hashable] = field(default_factory=Counter[Hashable])

    def __post_init__(self) -> None:
        self.arrays = {name: np.zeros((self.count, *shape), np.float32) for name, shape in self.shapes.items()}

    def has_room_for(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(a <= b for name, shape in shapes.items() for a, b in zip(shape, self.shapes[name], strict=True))

    def make_room(self, needed: Sequence[Hashable]) -> bool:
        """Free the slots not used for longest until the adapters fit; False if too many are in use."""
        missing = sum(key not in self.taken for key in needed)
        kept = set(needed)
        idle = [key for key in self.taken if key not in kept and self.pins[key] <= 0]
        surplus = len(self.taken) + missing - (self.count - 1)
        if surplus > len(idle):
            return False
        for key in idle[: max(surplus, 0)]:
            self.taken.pop(key)
            self.pins.pop(key, None)
        return True

    def write(self, needed: Sequence[Hashable], adapters: Mapping[Hashable, ActiveAdapter]) -> int:
        """Give each adapter a slot; returns how many were written."""
        written = 0
        used = set(self.taken.values())
        free = (slot for slot in range(1, self.count) if slot not in used)
        for key in needed:
            if key not in self.taken:
                self.taken[key] = next(free)
                self._fill(self.taken[key], adapters[key].feeds)
                written += 1
            self.taken.move_to_end(key)
        return written

    def _fill(self, slot: int, feeds: Arrays) -> None:
        for name, array in self.arrays.items():
            place, given = array[slot], feeds.get(name)
            place[...] = -np.inf if name == self.bias else 0.0
            if given is not None:
                place[tuple(slice(0, n) for n in given.shape)] = given


def _largest_shapes(manifest: Manifest, adapters: Sequence[ActiveAdapter]) -> dict[str, tuple[int, ...]]:
    """For every adapter input the smallest shape that holds each of the adapters'."""
    names = [name for point in manifest.points for name in (point.input_a, point.input_b)]
    least = {
        name: shape for p in manifest.points for name, shape in ((p.input_a, p.shape_a(0)), (p.input_b, p.shape_b(0)))
    }
    if manifest.head is not None:
        least |= {manifest.head.weight: (1, manifest.head.features), manifest.head.bias: (1,)}
        names += [manifest.head.weight, manifest.head.bias]
    given = [[a.feeds[name].shape for a in adapters if name in a.feeds] for name in names]
    return {
        name: tuple(max(sizes) for sizes in zip(least[name], *shapes, strict=True))
        for name, shapes in zip(names, given, strict=True)
    }


def _size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of one slot."""
    return 4 * sum(math.prod(shape) for shape in shapes.values())
