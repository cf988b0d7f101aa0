"""What training holds beside the process itself, at each of the moments at which that may be most.

Where all layers are trained there is one: every graph that runs is loaded, and holds what it did at its worst. After a
frozen prefix the graphs come and go: the prefix fills what is kept and is released, the last layers train from it, and
an evaluation does the same once more for its own samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from edgelora.dimensions import evaluate_dimension
from edgelora.manifest import MemoryTable, Prefix
from edgelora.objectives import Feeds, HostLoss, Objective
from edgelora.prefix_cache import CHUNK, PROBED, CacheSettings, PrefixCache
from edgelora.trainer import Trainer

ARENA = 1.06  # what ONNX Runtime's arena holds for a byte in use (docs/decisions/0015-a-memory-budget.md)
Sizes = dict[str, int]


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


def kept_of(trainer: Trainer, prefix: Prefix, objective: Objective, sizes_of: Callable[[Feeds], Sizes]) -> Kept:
    """What `trainer` will keep of these samples, where padding is free."""
    config = trainer.config
    if config.cache is None or (trainer.augmented and objective is trainer.objective):
        return Kept(0, None, {}, True)
    settings = CacheSettings(config.cache_dtype, config.cache_limit)
    size = PrefixCache(trainer.bundle, prefix, objective, settings, {}).foretold()
    ordered = np.argsort(objective.lengths(), kind="stable")
    chunk, few = (sizes_of(objective.inputs(ordered[-count:])) for count in (CHUNK, PROBED))
    return Kept(size if config.cache == "memory" else 0, chunk, few, config.cache_limit is not None)


def fed_of(prefix: Prefix, sizes: Sizes) -> int:
    """Bytes of the prefix's values that are fed to one run."""
    return sum(
        np.dtype(spec.dtype).itemsize * math.prod(evaluate_dimension(d, sizes) for d in spec.shape)
        for spec in prefix.kept
    )


def moments_after(
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
    step = loaded(file, sizes).beside(Moment(results=fed + fed_of(prefix, sizes), kept=kept.bytes))
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
        run = loaded(trainer.forward_file, at).beside(Moment(results=given + fed_of(prefix, at)))
        yield both.beside(run.beside(loaded(prefix.file, at)) if other.partly and not kept.partly else run)


def _filling(prefix: Prefix, loaded: Loaded, kept: Kept, beside: Moment, bytes_kept: int) -> Iterator[Moment]:
    """The prefix is loaded, padding is tried with what comes after it, and the values are filled in."""
    if kept.chunk is not None:
        yield beside.beside(loaded(prefix.file, None))
        yield beside.beside(loaded(prefix.file, kept.few)).beside(loaded(prefix.forward, None))
        yield beside.beside(loaded(prefix.file, kept.few)).beside(loaded(prefix.forward, kept.few))
        yield beside.beside(loaded(prefix.file, kept.chunk)).beside(Moment(kept=bytes_kept))


def moment_of(table: MemoryTable, sizes: Sizes | None, prepacked: bool, gathered: int, at_once: int = 1) -> Moment:
    """What a graph holds, see `Loaded`, that runs so often at once; `gathered` are the bytes of tables that became
    resident.
    """
    if sizes is None:
        return Moment(table.prepacked, pages=table.read) if prepacked else Moment()
    read = table.read_always if prepacked else table.read
    return Moment(table.prepacked if prepacked else 0, round(ARENA * at_once * table.peak(sizes)), read + gathered)
