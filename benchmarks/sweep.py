"""Sweep: how the cost of a step grows along one axis, ours beside PEFT with sdpa, in turn and in fresh processes.

Random tokens, every text of the same length, so that nothing is padding. The axes: batch, length (tokens a text),
rank, points (how many modules of each layer have adapters) and depth (how many of the last layers do: our backward pass
ends there as PEFT's does, and nothing is cached).
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clinc, figures, variants
from benchmarks.cases import TEXT
from benchmarks.job import INITIAL, PROBE, Job, Settings, Texts
from benchmarks.measure import BenchmarkError, Contender, alternate
from benchmarks.report import table
from benchmarks.rivals import peft
from edgelora.adapter import new_adapter, write_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import EdgeLoraError

CLASSES, FIRST_TOKEN, LAST_TOKEN = 150, 1000, 30000
MODULES = ("query", "value", "key", "intermediate.dense", "output.dense")  # the last name is two modules of a layer
OURS, RIVAL = variants.UNPADDED, peft.SDPA


@dataclass(frozen=True)
class Shape:
    """One point of a sweep: `points` modules (not 5) of each of the last `depth` layers have adapters."""

    batch: int = 32
    length: int = 32
    depth: int = 6
    rank: int = 8
    points: int = 2

    @property
    def targets(self) -> tuple[str, ...]:
        return MODULES[: self.points]

    @property
    def ours(self) -> variants.Variant:
        """What runs it on our side."""
        if self.depth == TEXT.layers:
            return replace(OURS, job="")
        last = {"train_last": self.depth, "cache": None}
        return replace(OURS, job="", convert={"train_last": (self.depth,)}, training=last)


LABELS = {
    "batch": "batch, texts",
    "length": "length, tokens a text",
    "depth": "depth, last layers with adapters",
    "rank": "rank",
    "points": "points, modules of a layer with adapters",
}
AXES: dict[str, tuple[int, ...]] = {
    "batch": (4, 8, 16, 32, 64),
    "length": (8, 16, 32, 64, 128),
    "depth": (1, 2, 4, 6),
    "rank": (2, 8, 32, 128),
    "points": (1, 2, 3, 4, 6),
}


def run(
    axis: str, values: tuple[int, ...] | None, steps: int, threads: int, progress: clinc.Progress
) -> dict[str, Any]:
    """Measure both sides at each value of the axis.

    Raises:
        BenchmarkError: the model cannot be had, or a side failed.
    """
    model = TEXT.model(progress)
    rows: list[dict[str, Any]] = []
    for value in values or AXES[axis]:
        shape = replace(Shape(), **{axis: value})
        progress(f"{axis} {value}")
        try:
            bundle = Bundle.open(clinc.cached_bundle(model, shape.targets, progress, shape.ours.convert))
        except EdgeLoraError as error:
            raise BenchmarkError(str(error)) from error
        with tempfile.TemporaryDirectory(prefix="edgelora-sweep-") as folder:
            job = write_job(Path(folder) / "job", bundle, model, shape, steps, threads)
            contenders = [
                shape.ours.contender(str(bundle.path)),
                Contender(RIVAL.name, RIVAL.title, RIVAL.worker, RIVAL.options),
            ]
            runs = alternate(contenders, [job], Path(folder) / "results", threads, progress)
        rows.append({"value": value, **{name: figures.cost(found) for name, found in runs.items()}})
    titles = {OURS.name: OURS.title, RIVAL.name: RIVAL.title}
    return {"axis": axis, "at": asdict(Shape()), "steps": steps, "rows": rows, "titles": titles}


def write_job(folder: Path, bundle: Bundle, model: Path, shape: Shape, steps: int, threads: int) -> Path:
    """Texts of random tokens, all of one length, enough for so many steps of one epoch."""
    rng = np.random.default_rng(0)
    count = shape.batch * steps
    ids = rng.integers(FIRST_TOKEN, LAST_TOKEN, (count, shape.length)).tolist()
    train = Texts.of(ids, rng.integers(0, CLASSES, count).tolist(), 0)
    test = Texts.of(ids[:1], [0], 0)
    settings = Settings(
        bundle=str(bundle.path),
        model=str(model),
        threads=threads,
        epochs=1,
        batch_size=shape.batch,
        learning_rate=1e-3,
        max_steps=None,
    )
    Job(folder, settings, train, test, np.arange(count)[None]).write()
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=2 * shape.rank,
        target_modules=shape.targets,
        layers_to_transform=TEXT.last(shape.depth),
    )
    adapter = new_adapter(bundle.manifest, config, labels=tuple(map(str, range(CLASSES))), rng=rng)
    for name in (INITIAL, PROBE):
        write_adapter(adapter, folder / name)
    return folder


def growth(values: list[float], figure: list[float]) -> list[float]:
    """The exponent p of figure ~ value^p between neighbours: 1 is proportional, 0 constant."""
    pairs = itertools.pairwise(zip(values, figure, strict=True))
    return [float(np.log(f2 / f1) / np.log(v2 / v1)) for (v1, f1), (v2, f2) in pairs]


def markdown(body: Mapping[str, Any]) -> str:
    """Step time and memory of both by value, their ratio, and the exponent of ours since the value before."""
    ours, rival = body["titles"]
    rows: list[list[str]] = []
    exponents = [None, *growth([r["value"] for r in body["rows"]], [_step(r, ours) for r in body["rows"]])]
    for row, exponent in zip(body["rows"], exponents, strict=True):
        memory = [row[name]["peak_memory_mb"]["median"] for name in (ours, rival)]
        rows.append(
            [
                str(row["value"]),
                f"{_step(row, ours):.1f}",
                f"{_step(row, rival):.1f}",
                f"{_step(row, ours) / _step(row, rival):.2f}",
                "" if exponent is None else f"{exponent:.2f}",
                f"{memory[0]:.0f}",
                f"{memory[1]:.0f}",
                f"{memory[0] / memory[1]:.2f}",
            ]
        )
    header = [body["axis"], "step, ms", "PEFT's", "ratio", "growth", "peak, MiB", "PEFT's", "ratio"]
    others = ", ".join(f"{name} {value}" for name, value in body["at"].items() if name != body["axis"])
    return f"{body['titles'][ours]} and {body['titles'][rival]}; {others}.\n\n{table(header, rows)}"


def _step(row: Mapping[str, Any], name: str) -> float:
    return 1000 * row[name]["step_seconds"]["median"]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Step time and peak memory along the axis, with quartiles and a proportional line, on logarithmic scales."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    values = np.array([row["value"] for row in body["rows"]], float)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, key, label, factor in (
        (axes[0], "step_seconds", "step, ms", 1000),
        (axes[1], "peak_memory_mb", "peak memory, MiB", 1),
    ):
        for name, title in body["titles"].items():
            low, median, high = (
                np.array([row[name][key][q] for row in body["rows"]]) * factor for q in ("low", "median", "high")
            )
            axis.errorbar(values, median, [median - low, high - median], fmt="o-", capsize=2, label=title)
            if name == OURS.name:
                line = median[0] * values / values[0]
                axis.plot(values, line, ":", color="grey", linewidth=1, zorder=0, label="proportional")
        axis.set(xlabel=LABELS[body["axis"]], ylabel=label, xscale="log", yscale="log", xticks=values)
        axis.set_xticklabels([f"{value:g}" for value in values])
        axis.xaxis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(", ".join(f"{n} {v}" for n, v in body["at"].items() if n != body["axis"]), fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
