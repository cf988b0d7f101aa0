"""How to train within a memory budget: what fits, predicted before any work, and the fastest of it.

    peak = resident + packed + results + pages + kept

`resident` is what the process holds with the graph loaded and run on one sample: Python, libraries, data.
`packed` are the products' weights once more, as ONNX Runtime lays them out for speed (none if prepacking is off),
`results` what a run holds at its worst moment, from the table that conversion measured (manifest.MemoryTable), and
`pages` the mapped weights that a run reads: whole weights, and of tables the pages that the samples' rows lie in;
where they pass through a window (page_window.py), no more than that.
`kept` are the values of a frozen prefix, if there is one; the last four are those of the moment at which they are most
(memory_moments.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgelora.bundle import Bundle
from edgelora.errors import ConfigError
from edgelora.gathered_rows import mapped_at_once
from edgelora.manifest import MemoryTable
from edgelora.mapped_pages import can_give_back
from edgelora.memory import resident_memory, trim_heap
from edgelora.memory_layout import Layout
from edgelora.memory_moments import ARENA, kept_of, moments
from edgelora.memory_sizes import sizes_at_least
from edgelora.objectives import HostLoss, Objective
from edgelora.session import SessionSettings
from edgelora.trainer import Trainer

_PER_PART = {True: 16, False: 32}  # what a run costs beside its cells, in cells, by whether weights are packed
_UNPACKED, _WINDOWED = 1.08, 1.15  # step time without prepacking; with weights that pass through a window
_NO_LENGTH = 64  # cells of a sample that has no length
WINDOW = 32_000_000


@dataclass(frozen=True)
class MemoryPlan:
    """What was chosen: `predicted` bytes at the peak within `budget`, and how they come about.

    `part_size` is the number of samples of a run (the batch size if nothing is split), `prepacked` whether weights
    are packed, `window` how much of the mapped weights is held at once (None: all), `file` the training graph, `work`
    what that computes as a multiple of the plain one (1: it is the plain one). `resident`, `packed`, `results`, `pages`
    and `kept` sum to `predicted`. `origin` says whose budget it is.
    """

    budget: int
    file: str
    work: float
    part_size: int
    prepacked: bool
    resident: int
    packed: int
    results: int
    pages: int
    cost: float
    origin: str = "--ram"
    kept: int = 0
    window: int | None = None

    @property
    def layout(self) -> Layout:
        """What decides the result's last bits."""
        return (self.file, self.part_size, self.prepacked)

    @property
    def predicted(self) -> int:
        return self.resident + self.packed + self.results + self.pages + self.kept

    def describe(self) -> str:
        """The plan in a line."""
        weights = "weights packed" if self.prepacked else "weights not packed"
        window = "" if self.window is None else f", of which {_mb(self.window)} are held at once"
        again = f", parts computed twice ({self.work:.2f} × the work)" if self.work > 1 else ""
        parts = ", ".join(
            f"{name} {_mb(size)}"
            for name, size in (
                ("process", self.resident),
                ("packed weights", self.packed),
                ("results", self.results),
                ("weights in use", self.pages),
                ("kept after the prefix", self.kept),
            )
            if size >= 500_000
        )
        return (
            f"{self.origin} {_mb(self.budget)}: {self.part_size} samples at a time, {weights}{window}{again}; "
            f"predicted peak {_mb(self.predicted)} ({parts})"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self) | {"predicted": self.predicted}


def plan_memory(
    trainer: Trainer,
    validation: Objective | None,
    budget: int,
    layout: Layout | None = None,
    origin: str = "--ram",
) -> MemoryPlan:
    """The fastest way to train within `budget` bytes, or that of `layout`.

    The graph is loaded, and run on the shortest sample, and on the longest where that fits. `origin` says whose budget
    it is.

    Raises:
        ConfigError: nothing fits, and what would; or the bundle or the system does not tell what a run needs.
    """
    candidates = sorted(candidate_plans(trainer, validation, budget), key=lambda plan: plan.cost)
    trim_heap()  # of what planning took: training would be beside it
    candidates = [plan for plan in candidates if plan.layout == layout] or candidates
    fitting = [plan for plan in candidates if plan.predicted <= budget]
    if not fitting:
        least = min(candidates, key=lambda plan: plan.predicted)
        splits = (
            "" if trainer.objective.separable else f"; a batch of the loss {trainer.objective.loss!r} cannot be split"
        )
        raise ConfigError(
            f"{origin} {_mb(budget)} is too little: the smallest peak possible is {_mb(least.predicted)} "
            f"(process {_mb(least.resident)}, weights {_mb(least.packed + least.pages)}, results "
            f"{_mb(least.results)}){splits}; give as much{_or_less(trainer)}"
        )
    return replace(fitting[0], origin=origin)


def _or_less(trainer: Trainer) -> str:
    """What else could be done where a budget is too small: shorter samples, where they are texts."""
    manifest = trainer.bundle.manifest
    if manifest.language is not None:
        return ", or shorten the rows (train --max-length)"
    return ", or shorten the samples (convert --max-length)" if "max_length" in manifest.preprocessing else ""


def candidate_plans(trainer: Trainer, validation: Objective | None, budget: int) -> Iterator[MemoryPlan]:
    """Every way to train, with what it takes."""
    bundle = trainer.bundle
    forms = {file: {f: _table(bundle, f) for f in files} for file, files in _files(trainer, validation).items()}
    file = list(forms)[-1]  # the one that holds least: planning may be no peak of its own
    resident = _measure_resident(trainer, file, forms[file], budget)
    at_once = mapped_at_once(bundle)
    packings = (False,) if bundle.settings.low_memory else (True, False)
    both = [one for one in (trainer.objective, validation) if one is not None]
    kept = {} if trainer.prefix is None else {id(one): kept_of(trainer, trainer.prefix, one) for one in both}
    for size in _part_sizes(trainer):
        cells, parts = _work(trainer, size)
        made = trainer.pieces(size)[0] if trainer.record is not None else 1  # gradients, of a piece each
        parameters = (made + 3) * trainer.flat.nbytes  # and their sum, and the optimizer's arrays
        for (file, tables), prepacked in itertools.product(forms.items(), packings):
            work = _work_of(trainer, file)
            held = list(moments(trainer, validation, file, tables, size, prepacked, at_once, kept))
            cost = (cells + parts * _PER_PART[prepacked]) * (1.0 if prepacked else _UNPACKED) * work
            for window in (None,) if prepacked else _windows(bundle.settings):
                most = max((moment.within(window) for moment in held), key=lambda moment: moment.total)
                yield MemoryPlan(
                    budget=budget,
                    file=file,
                    work=work,
                    part_size=size,
                    prepacked=prepacked,
                    resident=resident + parameters,
                    packed=most.packed,
                    results=most.results,
                    pages=most.pages,
                    kept=most.kept,
                    cost=cost if window is None else cost * _WINDOWED,
                    window=window,
                )


def _windows(settings: SessionSettings) -> tuple[int | None, ...]:
    """The windows to choose from for weights that are not packed."""
    if settings.window is not None or not can_give_back():
        return (settings.window,)
    return (None, WINDOW)


def follow(plan: MemoryPlan, trainer: Trainer) -> None:
    """Make the trainer and its bundle follow the plan."""
    bundle, record = trainer.bundle, trainer.record
    if record is not None:  # halves are not told how much memory they need
        recomputed = record.recomputed if plan.file == record.file else None
        trainer.record = replace(record, file=plan.file, recomputed=recomputed, halves=None)
    settings = bundle.settings if plan.prepacked else replace(bundle.settings, low_memory=True, window=plan.window)
    if settings != bundle.settings:
        bundle.use_settings(settings)
    if plan.part_size < trainer.config.batch_size:
        trainer.config = replace(trainer.config, micro_batch_size=plan.part_size)


def _files(trainer: Trainer, validation: Objective | None) -> dict[str, list[str]]:
    """The graphs that training runs, by the one with the gradients: the plain one, then the one that recomputes."""
    record, forward, prefix = trainer.record, trainer.forward_file, trainer.prefix
    first = [] if prefix is None else [prefix.file, *([prefix.forward] if forward != prefix.forward else [])]
    if record is None:
        return {forward: [forward, *first]}
    needs_forward = validation is not None or prefix is not None or isinstance(trainer.objective, HostLoss)
    return {file: [file, *([forward] if needs_forward else []), *first] for file in record.files}


def _work_of(trainer: Trainer, file: str) -> float:
    again = None if trainer.record is None else trainer.record.recomputed
    return again.work if again is not None and again.file == file else 1.0


def _table(bundle: Bundle, file: str) -> MemoryTable:
    table = bundle.manifest.memory.get(file)
    if table is None:
        raise ConfigError(
            f"{bundle.path}: it does not tell how much memory {file} needs, as older bundles do not: "
            "convert the model again, or set micro_batch_size and low_memory yourself"
        )
    return table


def _measure_resident(trainer: Trainer, file: str, tables: Mapping[str, MemoryTable], budget: int) -> int:
    """Bytes resident with the graphs loaded without packed weights, and run, but for results and weights' pages.

    `file` is the graph that trains, weights pass through a window. It runs on the shortest sample, and, where `budget`
    allows for that, on the longest: what the arena holds beside results in use, between them, grows with their sizes.
    """
    bundle, settings, plain = trainer.bundle, trainer.bundle.settings, trainer.record
    window = settings.window or WINDOW
    bundle.use_settings(replace(settings, low_memory=True, window=window))
    if plain is not None:
        trainer.record = replace(plain, file=file, recomputed=None, halves=None)
    try:
        lengths, record, most = trainer.objective.lengths(), trainer.record, 0
        graphs = [bundle.graph(f) if record is None or f != record.file else trainer.graphs(record)[-1] for f in tables]
        for row in dict.fromkeys((int(np.argmin(lengths)), int(np.argmax(lengths)))):  # one where all are as long
            results = _results_of_one(trainer, tables, row)
            if most and most + results + window > budget:
                break
            trainer.run_once(np.asarray([row]))
            for graph in graphs:
                graph.give_back_pages()
            if (resident := resident_memory()) is None:
                raise ConfigError(
                    "this system does not tell how much memory a process holds, so that a budget cannot be kept: set "
                    "micro_batch_size and low_memory yourself"
                )
            most = max(most, resident - results)
    finally:
        trainer.record = plain
        bundle.use_settings(settings)
    return most


def _results_of_one(trainer: Trainer, tables: Mapping[str, MemoryTable], row: int) -> int:
    """Bytes of the results of training on this sample, at the least."""
    ran = [next(iter(tables)), *([] if trainer.prefix is None else [trainer.prefix.file])]
    sizes = sizes_at_least(trainer, trainer.objective.inputs(np.asarray([row])))
    return round(ARENA * sum(tables[name].peak(sizes) for name in ran))


def _part_sizes(trainer: Trainer) -> list[int]:
    """The batch size and its halves, or what the settings say."""
    batch = min(trainer.config.batch_size, len(trainer.objective))
    if trainer.config.micro_batch_size is not None or not trainer.objective.separable:
        return [min(trainer.config.micro_batch_size or batch, batch)]
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _work(trainer: Trainer, size: int) -> tuple[int, int]:
    """Cells of the padded samples of an epoch that is cut into parts of `size`, and the number of parts."""
    lengths = np.where(np.max(trainer.objective.lengths()) > 1, trainer.objective.lengths(), _NO_LENGTH)
    cells, parts = 0, 0
    for batch in trainer.batches(0):
        ordered = np.sort(lengths[batch])
        cut = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        cells += sum(len(part) * int(part[-1]) for part in cut)
        parts += len(cut)
    return cells, parts


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
