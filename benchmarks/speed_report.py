"""The report of a speed run as Markdown tables, and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import listed
from benchmarks.report import ABSENT, table

Body = Mapping[str, Any]
OURS, RIVAL = "C0", "C1"


def markdown(body: Body) -> str:
    """Ratios against their aims, cost by contender, the prefix, accuracy, the hard limit, and what could not run."""
    parts = [
        _conditions(body),
        table(["ratio to the best PEFT variant", "measured", "of each run", "aim", "compared"], _ratio_rows(body)),
        table(
            ["", "step, ms", "tokens/s", "GEMM peak", "peak memory, MiB", "cold start, s", "losses off by"],
            [_cost_row(body["titles"].get(name, name), row) for name, row in _contenders(body)],
        ),
    ]
    if body["prefix"]:
        rows = [[_title(body, n), _range(f["epoch_seconds"], "{:.2f}")] for n, f in body["prefix"].items()]
        parts.append(table(["adapters in the last layers", "epoch after the first, s"], rows))
    if body["accuracy"]:
        header = [f"to {body['threshold']:.2f}", "training, s", "final accuracy", "learning rate"]
        parts.append(table(header, [_accuracy_row(body, name, f) for name, f in body["accuracy"].items()]))
    parts.append(_limited(body["limited"]))
    if body["unavailable"]:
        parts.append(
            table(["could not run", "why"], [[row["title"], row["reason"]] for row in body["unavailable"].values()])
        )
    return "\n\n".join(parts)


def _contenders(body: Body) -> list[tuple[str, Any]]:
    return [(name, row) for name, row in body["cost"].items() if "step_seconds" in row]


def _title(body: Body, name: str) -> str:
    title = body["titles"].get(name, name)
    return f"{title}, last layers" if "-last" in name else title


def _conditions(body: Body) -> str:
    options, machine = body["options"], body["machine"]
    peak = body["cost"].get("peak")
    measured = (
        "" if peak is None else f" Multiplication peak {peak['operations_per_second']['median'] / 1e9:.0f} GFLOP/s."
    )
    return (
        f"{body['case']}: {options['threads']} threads, medians (quartiles) of {options['repeats']} runs in turn. "
        f"{machine['processor']}, {machine['cores']} cores.{measured} "
        + ", ".join(f"{name} {version}" for name, version in body["versions"].items())
        + "."
    )


def _ratio_rows(body: Body) -> list[list[str]]:
    rows: list[list[str]] = []
    for key, value in body["ratios"].items():
        aim = body["aims"][key]
        measured = ABSENT if value is None else f"{value:.2f}"
        each = listed(body["each_ratio"].get(key, []))
        rows.append([aim["title"], measured, each, f"{aim['sense']} {aim['aim']:.2f}", body["reasons"][key]])
    return rows


def _range(figure: Mapping[str, float] | None, form: str, factor: float = 1.0) -> str:
    if figure is None:
        return ABSENT
    median, low, high = (form.format(figure[key] * factor) for key in ("median", "low", "high"))
    return f"{median} ({low}–{high})"


def _cost_row(title: str, row: Mapping[str, Any]) -> list[str]:
    return [
        title,
        _range(row["step_seconds"], "{:.0f}", 1000),
        _range(row["tokens_per_second"], "{:.0f}"),
        _range(row.get("gemm_share"), "{:.2f}"),
        _range(row["peak_memory_mb"], "{:.0f}"),
        _range(row["cold_start_seconds"], "{:.2f}"),
        f"{row['loss_difference']:.0e}" if "loss_difference" in row else ABSENT,
    ]


def _accuracy_row(body: Body, name: str, figures: Mapping[str, Any]) -> list[str]:
    title = next((t for n, t in body["titles"].items() if n.split()[0] == name), name)
    return [
        title,
        _range(figures["seconds_to_threshold"], "{:.1f}"),
        _range(figures["final_accuracy"], "{:.4f}"),
        f"{figures['learning_rate']:g}",
    ]


def _limited(limited: Mapping[str, Any]) -> str:
    if limited["completed"] is None:
        return f"Not run within the hard limit: {limited['reason']}."
    if not limited["completed"]:
        return f"Within the hard limit: did not complete ({limited.get('reason')})."
    counter = limited["limit_peak_mb"]
    counted = "no counter of its own" if counter is None else f"its own peak {counter:.0f} MiB, files' pages included"
    return (
        f"Within a hard limit of {limited['limit_mb']} MiB ({limited['kind']}, {counted}): {limited['contender']} "
        f"completes {limited['steps']} steps and an evaluation; peak of training {limited['peak_memory_mb']:.0f} MiB."
    )


def plot(body: Body, path: Path) -> None:
    """Bars: step time, peak memory and cold start by contender, with quartiles."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(reversed(_contenders(body)))
    panels = (
        ("step_seconds", "step, ms", 1000.0),
        ("peak_memory_mb", "peak memory, MiB", 1.0),
        ("cold_start_seconds", "cold start, s", 1.0),
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 0.8 + 0.38 * len(rows)), sharey=True, layout="constrained")
    colors = [OURS if body["titles"].get(name, "").startswith("EdgeLoRA") else RIVAL for name, _ in rows]
    for axis, (key, label, factor) in zip(axes, panels, strict=True):
        medians = [row[key]["median"] * factor for _, row in rows]
        spread = [
            [max(0.0, (row[key]["median"] - row[key]["low"]) * factor) for _, row in rows],
            [max(0.0, (row[key]["high"] - row[key]["median"]) * factor) for _, row in rows],
        ]
        axis.barh(range(len(rows)), medians, xerr=spread, color=colors, error_kw={"linewidth": 0.8})
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        for place, (value, over) in enumerate(zip(medians, spread[1], strict=True)):
            axis.text(
                value + over, place, f"  {value:,.0f}" if value >= 100 else f"  {value:.3g}", va="center", fontsize=8
            )
        axis.margins(x=0.2)
    axes[0].set_yticks(range(len(rows)), [body["titles"].get(name, name) for name, _ in rows])
    figure.savefig(path, dpi=120)
    plt.close(figure)
