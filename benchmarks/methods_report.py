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
            ABSENT if row["step_ratio"] is None else f"{row['step_ratio']:.2f}",
            f"{row['peak_memory_mb']:.0f}",
            ABSENT if row["file_bytes"] is None else f"{row['file_bytes'] / 1000:.0f}",
        ]
        for row in body["rows"]
    ]
    header = (
        "method", "modules", "accuracy %", "ours above", "rate", "parameters", "step", "peak MB", "kB",
    )  # fmt: skip
    told = (
        f"all-MiniLM-L6 on CLINC150: {settings['per_intent']} training texts for each of 150 intents, "
        f"{settings['epochs']} epochs, batches of {settings['batch_size']}, AdamW with the rate falling linearly, "
        f"gradients clipped at 1, {settings['test_texts']:,} test texts, {settings['threads']} threads; "
        f"{'means and ranges over seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}. "
        "Parameters and the adapter's kB are without the head; a step's time is to our LoRA's. In PEFT's rows: how "
        "many points ours has more."
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
    """A line a method, those with fewer parameters above: accuracy, parameters, a step to LoRA's, peak memory."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ours = sorted((row for row in body["rows"] if row["side"] == OURS), key=lambda row: -row["parameters"])
    places = {row["method"]: place for place, row in enumerate(ours)}
    figure, panels = plt.subplots(
        1, 4, sharey=True, figsize=(11, 1.2 + 0.32 * len(ours)), layout="constrained", width_ratios=(3, 2, 2, 2)
    )
    for row in body["rows"]:
        values = (100 * row["test_accuracy"], row["parameters"], row["step_ratio"], row["peak_memory_mb"])
        is_ours, place = row["side"] == OURS, places[row["method"]]
        style = {"facecolors": "C0", "edgecolors": "C0"} if is_ours else {"facecolors": "none", "edgecolors": "C1"}
        low, high = (100 * x for x in row["spread"])
        panels[0].hlines(place, low, high, color=style["edgecolors"], linewidth=1)
        for panel, value in zip(panels, values, strict=True):
            if value:
                panel.scatter(value, place, s=40 if is_ours else 90, **style)
    floor = next((100 * row["test_accuracy"] for row in ours if row["method"] == FLOOR), None)
    if floor is not None:
        panels[0].axvline(floor, color="0.7", linestyle="--", linewidth=1)
    panels[0].set_yticks(range(len(ours)), [row["title"] for row in ours])
    titles = ("test accuracy, %", "trained parameters", "step, LoRA's = 1", "peak memory, MB")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.grid(axis="y", color="0.92")
        panel.set_axisbelow(True)
    panels[1].set_xscale("log")
    for panel in panels[2:]:
        panel.set_xlim(left=0)
    panels[0].scatter([], [], facecolors="C0", edgecolors="C0", label="EdgeLoRA")
    panels[0].scatter([], [], facecolors="none", edgecolors="C1", label="PEFT")
    panels[0].legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
