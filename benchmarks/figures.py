"""Figures out of runs: medians with quartiles, the share of the multiplication peak, and ratios to the best rival."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.job import TURN
from benchmarks.measure import Run, paired_step_ratio, seconds_to

Figure = dict[str, float]
AIMS: dict[str, tuple[str, float, str]] = {
    "step_fp32": ("step time fp32, same computation", 0.80, "≤"),
    "step_int8": ("step time, int8 base", 0.40, "≤"),
    "time_to_085": ("time to 0.85 accuracy, all means", 0.20, "≤"),
    "cached_epoch": ("epoch with a cached prefix, last 2 of 6 layers", 0.15, "≤"),
    "peak_memory": ("peak memory", 0.30, "≤"),
    "cold_start": ("cold start to the end of the first step", 0.10, "≤"),
    "gemm_share": ("share of measured GEMM peak, fp32", 0.85, "≥"),
}


def spread(values: Iterable[float]) -> Figure:
    """Median and quartiles."""
    low, median, high = (float(q) for q in np.percentile(list(values), [25, 50, 75]))
    return {"median": median, "low": low, "high": high}


def cost(runs: Sequence[Run]) -> dict[str, Figure]:
    """Step time and tokens a second over all steps but the first of each run; memory and cold start over the runs."""
    bodies = [run.result for run in runs]
    steps = [later(body["step_seconds"]) for body in bodies]
    tokens = [later(body["tokens"]) for body in bodies]
    return {
        "step_seconds": spread(np.concatenate(steps)),
        "tokens_per_second": spread(np.concatenate([np.divide(t, s) for t, s in zip(tokens, steps, strict=True)])),
        "peak_memory_mb": spread(body["peak_memory_mb"] for body in bodies),
        "cold_start_seconds": spread(body["cold_start_seconds"] for body in bodies),
    }


def loss_difference(runs: Sequence[Run], reference: Sequence[Run], steps: int) -> float:
    """The largest difference of losses over the first steps, run by run: the same job on the same values."""
    pairs = zip(runs, reference, strict=True)
    return max(
        float(np.abs(np.subtract(a.result["losses"][:steps], b.result["losses"][:steps])).max()) for a, b in pairs
    )


def later(values: Sequence[float]) -> Sequence[float]:
    """Without the first, which is the cold start's; alone it stays."""
    return values[1:] or values


def turn_of(step: int) -> int:
    """The turn that a step (from 0) belongs to: the first is one step long, the others `TURN`."""
    return 0 if step == 0 else 1 + (step - 1) // TURN


def peak_by_turn(rates: Sequence[Mapping[str, float]]) -> list[float]:
    """Operations a second at most: in each turn, the largest median of any product over the turn's steps."""
    turns: dict[int, list[Mapping[str, float]]] = {}
    for step, rate in enumerate(rates):
        turns.setdefault(turn_of(step), []).append(rate)
    return [max(float(np.median([r[name] for r in found])) for name in found[0]) for _, found in sorted(turns.items())]


def gemm_share(runs: Sequence[Run], peaks: Sequence[Run], operations: Sequence[Sequence[int]]) -> Figure:
    """What the step's necessary operations a second are to the peak of the same turn, over all steps but the first."""
    shares: list[float] = []
    for run, peak, needed in zip(runs, peaks, operations, strict=True):
        by_turn = peak_by_turn(peak.result["rates"])
        steps = enumerate(zip(run.result["step_seconds"], needed, strict=True))
        shares += [count / seconds / by_turn[turn_of(step)] for step, (seconds, count) in steps if step]
    return spread(shares)


def epoch_seconds(runs: Sequence[Run]) -> Figure:
    """Seconds of training of the second and later epochs, the first's where there is one alone."""
    found: list[float] = []
    for run in runs:
        seconds = np.cumsum([0.0, *run.result["step_seconds"]])
        ends = [0, *(end + 1 for end in run.result["epoch_ends"])]
        epochs = [float(seconds[b] - seconds[a]) for a, b in itertools.pairwise(ends)]
        found += epochs[1:] or epochs
    return spread(found)


def accuracy(runs: Sequence[Run], threshold: float) -> dict[str, Any]:
    """Final and best accuracy, and the seconds of training up to the threshold (None: not every run reached it)."""
    bodies = [run.result for run in runs]
    reached = [t for body in bodies if (t := seconds_to(body, threshold)) is not None]
    return {
        "final_accuracy": spread(body["accuracy"][-1] for body in bodies),
        "best_accuracy": spread(max(body["accuracy"]) for body in bodies),
        "seconds_to_threshold": spread(reached) if len(reached) == len(bodies) else None,
    }


def best(figures: Mapping[str, Mapping[str, Any]], names: Iterable[str], key: str) -> str | None:
    """The name with the smallest median of this figure; None if none has it."""
    medians = {n: figures[n][key]["median"] for n in names if n in figures and figures[n].get(key)}
    return min(medians, key=medians.__getitem__) if medians else None


def ratio(
    figures: Mapping[str, Mapping[str, Any]], ours: str, rivals: Iterable[str], key: str
) -> tuple[float | None, str]:
    """Our median divided by the best rival's, and who that is; or None and why."""
    rival = best(figures, rivals, key)
    if ours not in figures or not figures[ours].get(key):
        return None, f"{ours} has no {key}"
    if rival is None:
        return None, f"no rival has {key}"
    return figures[ours][key]["median"] / figures[rival][key]["median"], f"{ours} to {rival}"


def paired_ratio(
    runs: Mapping[str, Sequence[Run]], figures: Mapping[str, Mapping[str, Any]], ours: str, rivals: Iterable[str]
) -> tuple[float | None, str]:
    """The median over steps of our time to the fastest rival's for the same batch in the same turn; or None and why."""
    rival = best(figures, rivals, "step_seconds")
    if not runs.get(ours):
        return None, f"{ours} did not run"
    if rival is None:
        return None, "no rival ran"
    found = paired_step_ratio(runs[ours], runs[rival])
    return found["median"], f"{ours} to {rival}, quartiles {found['low']:.3f} to {found['high']:.3f}"


def each_ratio(
    runs: Mapping[str, Sequence[Run]],
    figures: Mapping[str, Mapping[str, Any]],
    ours: str,
    rivals: Iterable[str],
    key: str,
) -> list[float]:
    """The ratio of each repeat by itself, to the rival that is best over all of them: one minute is not another's.

    Of steps, the median of ours to the rival's in the same turn.
    """
    rival = best(figures, rivals, key)
    pairs = [] if rival is None else zip(runs.get(ours, []), runs[rival], strict=False)  # one that failed has fewer

    def one(a: Run, b: Run) -> float:
        if key == "step_seconds":
            return float(np.median(np.divide(later(a.result[key]), later(b.result[key]))))
        if key == "epoch_seconds":
            return epoch_seconds([a])["median"] / epoch_seconds([b])["median"]
        return a.result[key] / b.result[key]

    return [one(a, b) for a, b in pairs]


def listed(ratios: Sequence[float]) -> str:
    """Each repeat's ratio, for a table."""
    return ", ".join(f"{ratio:.2f}" for ratio in ratios) or "—"
