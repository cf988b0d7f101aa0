"""A report's body as a Markdown table, and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ABSENT = "—"


def markdown(body: Mapping[str, Any]) -> str:
    """The tables that a case prints: accuracy by epoch, cost, agreement."""
    ours, rival = (body["contenders"][name] for name in ("edgelora", "peft"))
    titles = [ours["title"], rival["title"]]
    return "\n\n".join(
        [
            _conditions(body),
            table(["accuracy after epoch", *titles, "difference"], _accuracy_rows(ours["summary"], rival["summary"])),
            table(["", *titles, "ratio"], _cost_rows(body, ours["summary"], rival["summary"])),
            table(["agreement", "largest", "aim"], _agreement_rows(body["agreement"])),
        ]
    )


def _conditions(body: Mapping[str, Any]) -> str:
    options, machine = body["options"], body["machine"]
    targets = options["targets"] if isinstance(options["targets"], str) else ", ".join(options["targets"])
    micro = options["micro_batch_size"]
    micro = "" if micro is None else f" (cut by EdgeLoRA into parts of {micro} by length)"
    versions = {n: v for c in body["contenders"].values() for n, v in c["runs"][0]["versions"].items()}
    return (
        f"{body['case']}: {body['training_texts']:,} training and {body['test_texts']:,} test texts, "
        f"LoRA on {targets}, batch {options['batch_size']}, {options['epochs']} epochs, {options['threads']} threads, "
        f"medians of {options['repeats']} runs in turn. {machine['processor']}, {machine['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )


def _accuracy_rows(ours: Mapping[str, Any], rival: Mapping[str, Any]) -> list[list[str]]:
    pairs = zip(ours["accuracy"], rival["accuracy"], strict=True)
    return [[str(epoch), f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}"] for epoch, (a, b) in enumerate(pairs, 1)]


def _cost_rows(body: Mapping[str, Any], ours: Mapping[str, Any], rival: Mapping[str, Any]) -> list[list[str]]:
    def row(label: str, key: str, form: str, factor: float = 1.0) -> list[str]:
        values = [ABSENT if side[key] is None else form.format(side[key] * factor) for side in (ours, rival)]
        ratio = body["ratios"].get(key)
        return [label, *values, ABSENT if ratio is None else f"{ratio:.2f}"]

    def quartiles(side: Mapping[str, Any]) -> str:
        return "–".join(f"{1000 * q:.0f}" for q in side["step_seconds_quartiles"])

    paired = body["paired_step_ratio"]
    return [
        row("training, s", "training_seconds", "{:.1f}"),
        row("training, CPU s", "training_cpu_seconds", "{:.1f}"),
        row("step, median, ms", "step_seconds", "{:.1f}", 1000),
        ["step, quartiles, ms", quartiles(ours), quartiles(rival), ""],
        [
            "step for step, median (quartiles)",
            "",
            "",
            f"{paired['median']:.2f} ({paired['low']:.2f}–{paired['high']:.2f})",
        ],
        row(f"training to {body['threshold']:.2f} accuracy, s", "seconds_to_threshold", "{:.1f}"),
        row("peak memory, training, MiB", "peak_memory_mb", "{:.0f}"),
        row("peak memory, with evaluation, MiB", "peak_memory_with_evaluation_mb", "{:.0f}"),
        row("cold start to the end of the first step, s", "cold_start_seconds", "{:.2f}"),
    ]


def _agreement_rows(agreement: Mapping[str, Any]) -> list[list[str]]:
    rows = [[f"loss, first {agreement['steps']} steps, absolute", f"{agreement['loss']:.1e}", "1e-03"]]
    for at, worst in agreement["gradients"].items():
        label = f"gradients of {agreement['tensors']} tensors, {at} adapter, relative"
        rows.append([label, f"{worst['relative_error']:.1e}", "1e-04"])
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column stands left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (header, rule, *rows)
    ]
    return "\n".join(lines)


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Accuracy against seconds of training, and the loss of the first run step by step, for each contender."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    styles = zip(body["contenders"].values(), (("C0", 1.2, 2), ("C1", 3.0, 1)), strict=True)
    for contender, (color, width, order) in styles:
        style: dict[str, Any] = {"color": color, "linewidth": width, "zorder": order}
        for index, run in enumerate(contender["runs"]):
            seconds = np.cumsum(run["step_seconds"])[run["epoch_ends"]]
            label = contender["title"] if index == 0 else None
            left.plot(seconds, run["accuracy"], "o-", markersize=3, label=label, **style)
        losses = contender["runs"][0]["losses"]
        right.plot(range(1, len(losses) + 1), losses, label=contender["title"], **style)
    left.set(xlabel="seconds of training", ylabel="test accuracy")
    right.set(xlabel="step", ylabel="training loss (first run)")
    left.legend()
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def spinning_in_title(spinning: bool | None) -> str:
    """What a contender of ours was told about threads that wait, behind its name."""
    return "" if spinning is None else ", --spinning" if spinning else ", --no-spinning"
