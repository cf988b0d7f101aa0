"""Each task on real data: a fresh head on the frozen base, LoRA, and PEFT's LoRA, on the same settings.

A case is a module with a `CASE`, named in `CASES` by the word after `--case`.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import BenchmarkError
from benchmarks.tasks.case import Case, Grid, Outcome, Progress, Tried

CASES = {
    "membranes": "membranes",
    "mouse": "mouse",
    "raccoon": "raccoon",
    "sign-digits": "sign_digits",
    "speakers": "speakers",
}


def case_of(name: str) -> Case:
    """The case of this name, whose module is imported with what it needs."""
    return importlib.import_module(f"benchmarks.tasks.{CASES[name]}").CASE


def run(
    names: Sequence[str], quick: bool, seeds: Sequence[int], progress: Progress, kept: Path | None = None
) -> dict[str, Any]:
    """What each case found, as the JSON of the command; outcomes are told as they come.

    `kept` is a folder for the cases' bundles, which are made unless they are there (None: a temporary one).
    """
    body: dict[str, Any] = {}
    for name in names:
        case = case_of(name)
        body[name] = _told(
            name, case, lambda *given, case=case: case.run(given[0], quick, seeds, given[1]), progress, kept
        )
        body[name]["settings"] = case.settings(quick)
    return body


def choose(names: Sequence[str], grid: Grid, progress: Progress, kept: Path | None = None) -> dict[str, Any]:
    """What each setting reaches on a part of each case's training data, after learning from the rest of it.

    `kept` is as for `run`.
    """
    body: dict[str, Any] = {}
    for name in names:
        case = case_of(name)
        if not isinstance(case, Tried):
            raise BenchmarkError(f"{name}: its settings are not chosen by this command")
        body[name] = _told(name, case, lambda *given, case=case: case.tried(given[0], grid, given[1]), progress, kept)
        body[name]["settings"] = "On a part of the training data, learned from the rest of it."
    return body


def _told(
    name: str,
    case: Case,
    outcomes_of: Callable[[Path, Progress], Iterator[Outcome]],
    progress: Progress,
    kept: Path | None,
) -> dict[str, Any]:
    """A case's part of the JSON."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="edgelora-") as temporary:
        folder = kept / name if kept else Path(temporary)
        for one in outcomes_of(folder, lambda what: progress(f"{name}: {what}")):
            outcomes.append(one)
            told = ", ".join(f"{metric} {value:.4f}" for metric, value in one.metrics.items())
            progress(f"{name}: {one.side}, seed {one.seed}: {told} ({one.seconds:.0f} s)")
    if not outcomes:
        raise BenchmarkError(f"{name}: nothing was measured")
    return {"title": case.title, "outcomes": [asdict(o) for o in outcomes]}


def markdown(body: dict[str, Any]) -> str:
    """A table for each case: means of the seeds, and between which values they lie."""
    parts: list[str] = []
    for case in body.values():
        sides = by_side(case)
        names = list(dict.fromkeys(name for of_side in sides.values() for one in of_side for name in one.metrics))
        head = ["", *names, "training, s"]
        rows = [
            [
                side,
                *(_shown(values_of(of_side, name)) for name in names),
                f"{np.mean([o.seconds for o in of_side]):.0f}",
            ]
            for side, of_side in sides.items()
        ]
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        seeds = sorted({one.seed for of_side in sides.values() for one in of_side})
        told = f"Seeds {', '.join(map(str, seeds))}: means, in brackets the least and the most."
        parts.append(
            f"**{case['title']}.** {case['settings']} {told if len(seeds) > 1 else ''}".rstrip() + f"\n\n{table}"
        )
    return "\n\n".join(parts)


def by_side(case: dict[str, Any]) -> dict[str, list[Outcome]]:
    """The outcomes of a case of the JSON, by side."""
    found: dict[str, list[Outcome]] = {}
    for one in case["outcomes"]:
        found.setdefault(one["side"], []).append(Outcome(**one))
    return found


def values_of(outcomes: Sequence[Outcome], metric: str) -> list[float]:
    """What each seed reached, where it tells of the metric."""
    return [one.metrics[metric] for one in outcomes if metric in one.metrics]


def _shown(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}–{max(values):.3f})"


def draw(body: dict[str, Any], path: Path) -> None:
    """The first metric of each side, the mean of the seeds, a group of bars for each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(body), figsize=(4 * len(body), 3.2), squeeze=False)
    for axis, (name, case) in zip(axes[0], body.items(), strict=True):
        sides = by_side(case)
        metric = next(iter(case["outcomes"][0]["metrics"]))
        means = [float(np.mean(values_of(outcomes, metric))) for outcomes in sides.values()]
        bars = axis.bar(list(sides), means, color="#4477aa")
        axis.bar_label(bars, fmt="%.3f")
        axis.set(title=name, ylabel=metric)
        axis.tick_params(axis="x", labelrotation=20)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
