"""Each task on real data: a fresh head on the frozen base, LoRA, and PEFT's LoRA, on the same settings.

A case is a module with a `CASE`, named in `CASES` by the word after `--case`.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import BenchmarkError
from benchmarks.tasks.case import Case, Outcome

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


def run(names: Sequence[str], quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """What each case found, as the JSON of the command."""
    body: dict[str, Any] = {}
    for name in names:
        case = case_of(name)
        with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
            outcomes = case.run(Path(folder), quick, lambda what, name=name: progress(f"{name}: {what}"))
        if not outcomes:
            raise BenchmarkError(f"{name}: nothing was measured")
        body[name] = {"title": case.title, "settings": case.settings(quick), "outcomes": [asdict(o) for o in outcomes]}
    return body


def markdown(body: dict[str, Any]) -> str:
    """A table for each case."""
    parts: list[str] = []
    for case in body.values():
        outcomes = [Outcome(**one) for one in case["outcomes"]]
        names = list(dict.fromkeys(name for one in outcomes for name in one.metrics))
        head = ["", *names, "training, s"]
        rows = [
            [one.side, *(f"{one.metrics[n]:.3f}" if n in one.metrics else "" for n in names), f"{one.seconds:.0f}"]
            for one in outcomes
        ]
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"**{case['title']}.** {case['settings']}\n\n{table}")
    return "\n\n".join(parts)


def draw(body: dict[str, Any], path: Path) -> None:
    """The first metric of each side, a group of bars for each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(body), figsize=(4 * len(body), 3.2), squeeze=False)
    for axis, (name, case) in zip(axes[0], body.items(), strict=True):
        outcomes = [Outcome(**one) for one in case["outcomes"]]
        metric = next(iter(outcomes[0].metrics))
        bars = axis.bar([one.side for one in outcomes], [one.metrics[metric] for one in outcomes], color="#4477aa")
        axis.bar_label(bars, fmt="%.3f")
        axis.set(title=name, ylabel=metric)
        axis.tick_params(axis="x", labelrotation=20)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
