"""What training holds beside the process itself, at each of the moments at which that may be most.

Where all layers are trained there is one: every graph that runs is loaded, and holds what it did at its worst. After a
frozen prefix the graphs come and go: the prefix fills what is kept and is released, the last layers train from it, and
an evaluation does the same once more for its own samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgelora.dimensions import evaluate_dimension
from edgelora.gathered_rows import gathered_bytes
from edgelora.manifest import MemoryTable, Prefix
from edgelora.memory_sizes import Sizes, sizes_at_most, sizes_of
from edgelora.objectives import Feeds, HostLoss, Objective
from edgelora.prefix_cache import CHUNK, PROBED, CacheSettings, PrefixCache
from edgelora.trainer import Trainer

ARENA = 1.06  # what ONNX Runtime's arena holds for a byte in use (docs/decisions/0015-a-memory-budget.md)


@dataclass(frozen=True)
class Moment:
    """Bytes of packed weights, of runs' results with what is fed, of mapped weights in use, and of kept values."""

    packed: int = 0
    results: int = 0
    pages: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        return self.packed + self.results + self.pages + self.kept

    def within(self, window: int | None) -> Moment:
        """The same where weights pass through a window."""
        return self if window is None else replace(self, pages=min(self.pages, window))

    def then(self, other: Moment) -> Moment:
        """Of one graph, what both runs hold at the most."""
        return Moment(*map(max, vars(self).values(), vars(other).values()))

    def beside(self, other: Moment) -> Moment:
        """Both at once; pages are given back after every run, so that there are only those of the one that reads more.

        What is kept is the same.
        """
        return Moment(
            self.packed + other.packed,
            self.results + other.results,
            max(self.pages, other.pages),
            max(self.kept, other.kept),
        )


Loaded = Callable[[str, Sizes | None], Moment]
"""What a graph holds that has run at these sizes; None: that is just loaded, its weights read to be packed."""


@dataclass(frozen=True)
class Kept:
    """The samples after the prefix: what is kept of them in memory, and whether the prefix runs again for some.

    `chunk` are the sizes at which the prefix fills, None where nothing is kept; `few` those at which padding is tried.
    """

    bytes: int
    chunk: Sizes | None
    few: Sizes
    partly: bool


def kept_of(trainer: Trainer, prefix: Prefix, objective: Objective) -> Kept:
    """What `trainer` will keep of these samples, where padding is free."""
    config = trainer.config
    if config.cache is None or (trainer.augmented and objective is trainer.objective):
        return Kept(0, None, {}, True)
    settings = CacheSettings(config.cache_dtype, config.cache_limit)
    size = PrefixCache(trainer.bundle, prefix, objective, settings, {}).foretold()
    ordered = np.argsort(objective.lengths(), kind="stable")
    chunk, few = (sizes_of(trainer.bundle, objective.inputs(ordered[-count:])) for count in (CHUNK, PROBED))
    return Kept(size if config.cache == "memory" else 0, chunk, few, config.cache_limit is not None)


def moments(
    trainer: Trainer,
    validation: Objective | None,
    file: str,
    tables: Mapping[str, MemoryTable],
    size: int,
    prepacked: bool,
    at_once: int,
    kept: Mapping[int, Kept],
) -> Iterator[Moment]:
    """What training by the graph `file` in parts of `size` samples holds at its moments.

    `tables` are those of the graphs that it runs, `at_once` the bytes of mapped weights that reading one makes
    resident, `kept` what is kept of the objectives after a prefix, by their `id`.
    """
    prefix = trainer.prefix

    def part(objective: Objective) -> tuple[Sizes, int]:
        longest = _longest(objective, size)
        return sizes_at_most(trainer, longest), sum(x.nbytes for x in longest.values())

    sizes, fed = part(trainer.objective)
    other = part(validation) if validation is not None else None
    if prefix is None:
        whole = Moment(results=fed)
        for moment in _sessions(trainer, file, tables, size, sizes, None if other is None else other[0], prepacked):
            whole = whole.beside(moment)
        gathered = gathered_bytes(trainer.objective, tables.values(), size, at_once)
        yield replace(whole, pages=whole.pages + gathered)
        return
    rows = max(size, CHUNK if trainer.config.cache is not None else 0)

    def loaded(name: str, at: Sizes | None) -> Moment:
        table = tables[name]
        gathered = 0 if at is None else gathered_bytes(trainer.objective, [table], rows, at_once)
        return _moment_of(table, at, prepacked, gathered)

    evaluated = None if validation is None or other is None else (kept[id(validation)], *other)
    yield from _moments_after(trainer, file, prefix, loaded, (kept[id(trainer.objective)], sizes, fed), evaluated)


def _longest(objective: Objective, size: int) -> Feeds:
    """The inputs of the `size` longest samples."""
    return objective.inputs(np.argsort(objective.lengths(), kind="stable")[-size:])


def _sessions(
    trainer: Trainer,
    file: str,
    tables: Mapping[str, MemoryTable],
    size: int,
    sizes: Sizes,
    held_out: Sizes | None,
    prepacked: bool,
) -> Collection[Moment]:
    """What each loaded graph holds: pieces of a part are computed on a core each, an evaluation on all."""
    forward, batch = trainer.forward_file, trainer.bundle.manifest.inputs[0].shape[0]
    pieces, workers = trainer.pieces(size) if trainer.record is not None else (1, 1)
    piece = {name: -(-n // pieces) if name == batch else n for name, n in sizes.items()}
    found: dict[tuple[str, bool], Moment] = {}

    def run(name: str, at: Sizes, at_once: int) -> None:
        key, moment = (name, at_once > 1), _moment_of(tables[name], at, prepacked, 0, at_once)
        found[key] = found.get(key, moment).then(moment)

    run(file, piece, workers)
    if trainer.record is not None and isinstance(trainer.objective, HostLoss):
        run(forward, piece, workers)
    if held_out is not None:
        run(forward, held_out, 1)
    return found.values()


def _fed_of(prefix: Prefix, sizes: Sizes) -> int:
    """Bytes of the prefix's values that are fed to one run."""
    return sum(
        np.dtype(spec.dtype).itemsize * math.prod(evaluate_dimension(d, sizes) for d in spec.shape)
        for spec in prefix.kept
    )


def _moments_after(
    trainer: Trainer,
    file: str,
    prefix: Prefix,
    loaded: Loaded,
    train: tuple[Kept, Sizes, int],
    held_out: tuple[Kept, Sizes, int] | None,
) -> Iterator[Moment]:
    """The moments of training by the graph `file`: of the samples, and those held out, what is kept, the sizes of the
    largest part, and the bytes of its inputs.
    """
    kept, sizes, fed = train
    step = loaded(file, sizes).beside(Moment(results=fed + _fed_of(prefix, sizes), kept=kept.bytes))
    if trainer.record is None or isinstance(trainer.objective, HostLoss):
        step = step if file == trainer.forward_file else step.beside(loaded(trainer.forward_file, sizes))
    yield from _filling(prefix, loaded, kept, Moment(), kept.bytes)
    if kept.partly:
        step = step.beside(loaded(prefix.file, sizes))
    yield loaded(file, None).beside(Moment(kept=kept.bytes))
    yield step
    if held_out is not None:
        other, at, given = held_out
        both = step.beside(Moment(kept=kept.bytes + other.bytes))
        yield from _filling(prefix, loaded, other, step, kept.bytes + other.bytes)
        run = loaded(trainer.forward_file, at).beside(Moment(results=given + _fed_of(prefix, at)))
        yield both.beside(run.beside(loaded(prefix.file, at)) if other.partly and not kept.partly else run)


def _filling(prefix: Prefix, loaded: Loaded, kept: Kept, beside: Moment, bytes_kept: int) -> Iterator[Moment]:
    """The prefix is loaded, padding is tried with what comes after it, and the values are filled in."""
    if kept.chunk is not None:
        yield beside.beside(loaded(prefix.file, None))
        yield beside.beside(loaded(prefix.file, kept.few)).beside(loaded(prefix.forward, None))
        yield beside.beside(loaded(prefix.file, kept.few)).beside(loaded(prefix.forward, kept.few))
        yield beside.beside(loaded(prefix.file, kept.chunk)).beside(Moment(kept=bytes_kept))


def _moment_of(table: MemoryTable, sizes: Sizes | None, prepacked: bool, gathered: int, at_once: int = 1) -> Moment:
    """What a graph holds, see `Loaded`, that runs so often at once; `gathered` are the bytes of tables that became
    resident.
    """
    if sizes is None:
        return Moment(table.prepacked, pages=table.read) if prepacked else Moment()
    read = table.read_always if prepacked else table.read
    return Moment(table.prepacked if prepacked else 0, round(ARENA * at_once * table.peak(sizes)), read + gathered)
