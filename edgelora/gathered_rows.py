"""Weights of which a run reads some rows, as an embedding's: how many bytes of the mapped file become resident."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np

from edgelora.bundle import Bundle
from edgelora.manifest import GatheredTable, MemoryTable
from edgelora.mapped_pages import can_give_back
from edgelora.measuring import length_sorted_batches
from edgelora.memory import resident_memory
from edgelora.objectives import Feeds, Objective

_LOOKED_AT = 64  # parts whose rows are counted
_PAGE, _PROBES = 65536, 5  # bytes at the least; reads that are tried


def mapped_at_once(bundle: Bundle) -> int:
    """Bytes of a weights file that become resident by reading one: the system maps some pages around it."""
    largest = max(bundle.manifest.files, key=lambda name: bundle.manifest.files[name].size)
    size = bundle.manifest.files[largest].size
    if size < _PROBES * _PAGE:
        return _PAGE
    with (bundle.path / largest).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = resident_memory() or 0
        for probe in range(_PROBES):
            mapped[probe * (size // _PROBES)]
        grown = (resident_memory() or 0) - before
    return max(_PAGE, grown // _PROBES)


def gathered_bytes(objective: Objective, tables: Iterable[MemoryTable], size: int, at_once: int) -> int:
    """Bytes of the tables' weights that become resident for the rows of `size` samples, at most.

    `at_once` are the bytes that reading one makes resident.
    """
    found = {table for one in tables for table in one.gathered}
    if not can_give_back():
        return sum(table.rows * table.row_bytes for table in found)
    most = dict.fromkeys(found, 0)
    for batch in list(length_sorted_batches(objective.lengths(), size))[-_LOOKED_AT:]:
        feeds = objective.inputs(batch)
        for table in found:
            most[table] = max(most[table], _resident_rows(table, feeds, at_once))
    return sum(most.values())


def _resident_rows(table: GatheredTable, feeds: Feeds, at_once: int) -> int:
    whole = table.rows * table.row_bytes
    if table.input is None or table.input not in feeds:
        return whole
    first = np.unique(np.asarray(feeds[table.input], np.int64)) % table.rows * table.row_bytes
    pieces = np.unique(np.concatenate([first // at_once, (first + table.row_bytes - 1) // at_once]))
    return min(whole, len(pieces) * at_once)
