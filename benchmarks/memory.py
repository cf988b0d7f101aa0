"""Memory budgets: predicted and measured peak of `edgelora train --ram`, and its steps' time.

all-MiniLM-L6 and CLINC150. Every run is a fresh process of the command; the budgets take turns, round after round.
Peaks are VmHWM.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clinc import RECIPE, ClincOptions, cached_bundle, find_data, read_clinc
from benchmarks.measure import ROOT, BenchmarkError, process_environment
from edgelora.errors import EdgeLoraError
from edgelora_tools.recipes import fetch, load_recipe

NONE = "none"


def run(
    budgets: Sequence[str], repeats: int, steps: int, threads: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """A row for no budget and each of `budgets`: medians over the repeats.

    Raises:
        BenchmarkError: the data or the model cannot be had, or the command failed.
    """
    options = ClincOptions()
    intents, train, _ = read_clinc(find_data(), options)
    try:
        bundle = cached_bundle(fetch(load_recipe(RECIPE), progress), options.targets, progress)
    except EdgeLoraError as error:
        raise BenchmarkError(str(error)) from error
    cases = (NONE, *budgets)
    reports: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="edgelora-memory-") as folder:
        data = Path(folder) / "train.jsonl"
        rows = ({"text": t, "label": intents[y]} for t, y in zip(train.texts, train.labels, strict=True))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for repeat in range(repeats):
            for case in cases if repeat % 2 == 0 else reversed(cases):
                progress(f"run {repeat + 1} of {repeats}, budget {case}")
                reports[case].append(_train(bundle, data, case, steps, threads))
    return {"case": "memory", "steps": steps, "rows": [_row(case, reports[case], reports[NONE]) for case in cases]}


def _train(bundle: Path, data: Path, budget: str, steps: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgelora-memory-") as store:
        command = [sys.executable, "-m", "edgelora", "train", str(bundle), "--store", store, "--adapter", "a", "--json"]
        command += ["--data", str(data), "--max-steps", str(steps), "--epochs", "1", "--threads", str(threads)]
        command += [] if budget == NONE else ["--ram", budget]
        environment = process_environment(threads)
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"edgelora train with the budget {budget} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _row(case: str, reports: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    plans = [r["memory"] for r in reports if r["memory"] is not None]
    return {
        "budget": case,
        "part_size": plans[0]["part_size"] if plans else None,
        "prepacked": plans[0]["prepacked"] if plans else None,
        "predicted_mb": float(np.median([p["predicted"] for p in plans])) / 1e6 if plans else None,
        "measured_mb": float(np.median([r["peak_memory_bytes"] for r in reports])) / 1e6,
        "step_ratio": float(
            np.median(
                [a["step_seconds_median"] / b["step_seconds_median"] for a, b in zip(reports, plain, strict=True)]
            )
        ),
    }


def markdown(body: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        f"Memory budgets, all-MiniLM-L6, CLINC150, batch 32, {body['steps']} steps",
        "",
        "| `--ram` | samples at a time | packed weights | predicted MB | measured MB | step time, ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in body["rows"]:
        planned = row["predicted_mb"] is not None
        told = f"{row['part_size']} | {'yes' if row['prepacked'] else 'no'} | {row['predicted_mb']:.0f}"
        measured = f"{row['measured_mb']:.0f} | {row['step_ratio']:.2f}"
        lines.append(f"| {row['budget']} | {told if planned else '— | yes | —'} | {measured} |")
    return "\n".join(lines)
