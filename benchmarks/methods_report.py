"""The comparison of methods as rows, a table, a plot, and the part of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import BenchmarkError
from benchmarks.report import ABSENT, table

OURS, PEFT, REFERENCE, FLOOR = "edgelora", "peft", "lora", "head"
BEGIN, END = "<!-- measured -->", "<!-- measured so far -->"
Run = Mapping[str, Any]


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each method and side, in the order of `runs`, at the rate at which ours held out best."""
    chosen: dict[tuple[str, str], list[Run]] = {}
    for (name, side), found in _grouped(runs).items():
        if side == PEFT:
            rate = chosen[name, OURS][0]["learning_rate"]
            found = [run for run in found if run["learning_rate"] == rate]
        if found:
            chosen[name, side] = found if side == PEFT else _of_best_rate(found)
    return [_row(found, chosen) for found in chosen.values()]


def best_rate(runs: Sequence[Run], name: str) -> float:
    """The learning rate at which a method of ours is best on what was held out, over the seeds."""
    return _of_best_rate(_grouped(runs)[name, OURS])[0]["learning_rate"]


def _grouped(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by method and side, PEFT's behind ours."""
    names = dict.fromkeys(run["method"] for run in runs)
    found = {(n, s): [r for r in runs if (r["method"], r["side"]) == (n, s)] for n in names for s in (OURS, PEFT)}
    return {key: of_key for key, of_key in found.items() if of_key}


def _of_best_rate(runs: Sequence[Run]) -> list[Run]:
    """Those at the rate that is best on what was held out, of the rates that were tried so; else of the first."""
    tried: dict[float, list[float]] = {}
    for run in runs:
        if run["held_out_accuracy"] is not None:
            tried.setdefault(run["learning_rate"], []).append(run["held_out_accuracy"])
    best = max(tried, key=lambda rate: np.mean(tried[rate])) if tried else runs[0]["learning_rate"]
    return [run for run in runs if run["learning_rate"] == best]


def _row(runs: Sequence[Run], chosen: Mapping[tuple[str, str], Sequence[Run]]) -> dict[str, Any]:
    first = runs[0]
    ours = {run["seed"]: run for run in chosen[first["method"], OURS]}
    reference = {run["seed"]: run for run in chosen.get((REFERENCE, OURS), ())}
    accuracies = [run["test_accuracy"] for run in runs]
    gaps = [ours[run["seed"]]["test_accuracy"] - run["test_accuracy"] for run in runs if run["seed"] in ours]
    ratios = [r["step_seconds"] / reference[r["seed"]]["step_seconds"] for r in runs if r["seed"] in reference]
    return {
        **{key: first[key] for key in ("method", "side", "title", "modules", "learning_rate")},
        "parameters": next(iter(ours.values()))["parameters"],
        "file_bytes": first.get("file_bytes"),
        "seeds": sorted(run["seed"] for run in runs),
        "test_accuracy": float(np.mean(accuracies)),
        "spread": [min(accuracies), max(accuracies)],
        "ours_above": float(np.mean(gaps)) if first["side"] == PEFT and gaps else None,
        "step_seconds": float(np.median([run["step_seconds"] for run in runs])),
        "step_ratio": float(np.median(ratios)) if ratios else None,
        "peak_memory_mb": float(np.median([run["peak_memory_mb"] for run in runs])),
    }


def markdown(body: Mapping[str, Any]) -> str:
    """The table."""
    settings = body["settings"]
    seeds = max((row["seeds"] for row in body["rows"]), key=len)
    cells = [
        [
            row["title"] if row["side"] == OURS else f"{row['title']}, PEFT",
            row["modules"],
            _accuracy(row),
            ABSENT if row["ours_above"] is None else f"{100 * row['ours_above']:+.1f}",
            f"{row['learning_rate']:g}",
            f"{row['parameters']:,}",
            f"{1000 * row['step_seconds']:.0f}",
            ABSENT if row["step_ratio"] is None else f"{row['step_ratio']:.2f}",
            f"{row['peak_memory_mb']:.0f}",
            ABSENT if row["file_bytes"] is None else f"{row['file_bytes'] / 1000:.0f}",
        ]
        for row in body["rows"]
    ]
    header = (
        "method", "modules", "accuracy %", "ours above", "rate", "parameters", "step ms", "to LoRA", "peak MB", "kB",
    )  # fmt: skip
    told = (
        f"all-MiniLM-L6 on CLINC150: {settings['per_intent']} training texts for each of 150 intents, "
        f"{settings['epochs']} epochs, batches of {settings['batch_size']}, AdamW with the rate falling linearly, "
        f"gradients clipped at 1, {settings['test_texts']:,} test texts, {settings['threads']} threads; "
        f"{'means and ranges over seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}. "
        "Parameters and the adapter's kB are without the head. In PEFT's rows: how many points ours has more."
    )
    return f"{told}\n\n{table(header, cells)}"


def _accuracy(row: Mapping[str, Any]) -> str:
    mean = f"{100 * row['test_accuracy']:.1f}"
    low, high = row["spread"]
    return mean if len(row["seeds"]) == 1 else f"{mean} ({100 * low:.1f}–{100 * high:.1f})"


def put_into_page(body: Mapping[str, Any], page: Path) -> None:
    """Replace what stands between the page's two marks by the table.

    Raises:
        BenchmarkError: it does not have them.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"{page}: has no {BEGIN} and {END} to put the table between")
    page.write_text(f"{before}{BEGIN}\n{markdown(body)}\n{END}{after}", encoding="utf-8")


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Accuracy against the parameters that learn, the step's time as the size of the mark; PEFT's are hollow."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in body["rows"]:
        accuracy = 100 * row["test_accuracy"]
        if not row["parameters"]:
            axes.axhline(accuracy, color="0.7", linestyle="--", linewidth=1)
            axes.annotate(row["title"], (0.01, accuracy), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", color="0.4")  # fmt: skip
            continue
        is_ours = row["side"] == OURS
        low, high = (100 * x for x in row["spread"])
        axes.vlines(row["parameters"], low, high, color="C0" if is_ours else "C1", linewidth=1)
        axes.scatter(
            row["parameters"],
            accuracy,
            s=60 * (row["step_ratio"] or 1.0),
            facecolors="C0" if is_ours else "none",
            edgecolors="C0" if is_ours else "C1",
            label=None,
        )
        if is_ours:
            place = (row["parameters"], accuracy)
            axes.annotate(row["title"], place, textcoords="offset points", xytext=(6, 5), fontsize=8)
    axes.set(xscale="log", xlabel="trained parameters, without the head", ylabel="test accuracy, %")
    axes.scatter([], [], facecolors="C0", edgecolors="C0", label="EdgeLoRA")
    axes.scatter([], [], facecolors="none", edgecolors="C1", label="PEFT; area: a step's time")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
