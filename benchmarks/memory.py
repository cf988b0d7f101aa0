"""Memory budgets: predicted and measured peak of `edgelora train --ram`, and its steps' time.

all-MiniLM-L6 and CLINC150. Every run is a fresh process of the command; the budgets take turns, round after round.
Peaks are VmHWM. A text may be several utterances, which makes longer samples.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clinc import RECIPE, ClincOptions, cached_bundle, find_data, read_clinc
from benchmarks.measure import ROOT, BenchmarkError, process_environment
from edgelora.errors import EdgeLoraError
from edgelora_tools.recipes import fetch, load_recipe

NONE = "none"


@dataclass(frozen=True)
class MemoryOptions:
    """What the command line chooses.

    Batches may be split to keep to a budget of `ram`, and are not for one of `whole`. A text is `joined` utterances of
    one intent.
    """

    ram: tuple[str, ...] = ("256MB", "192MB", "160MB")
    whole: tuple[str, ...] = ()
    joined: int = 1
    batch_size: int = 32
    repeats: int = 3
    steps: int = 47
    threads: int = 2

    @property
    def cases(self) -> tuple[tuple[str, bool], ...]:
        """Budgets, and whether batches stay whole."""
        return ((NONE, False), *((one, False) for one in self.ram), *((one, True) for one in self.whole))


def run(options: MemoryOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """A row for no budget and each of the budgets: medians over the repeats.

    Raises:
        BenchmarkError: the data or the model cannot be had, or the command failed.
    """
    clinc = ClincOptions()
    intents, train, _ = read_clinc(find_data(), clinc)
    try:
        bundle = cached_bundle(fetch(load_recipe(RECIPE), progress), clinc.targets, progress)
    except EdgeLoraError as error:
        raise BenchmarkError(str(error)) from error
    cases = options.cases
    reports: dict[tuple[str, bool], list[dict[str, Any]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="edgelora-memory-") as folder:
        data = Path(folder) / "train.jsonl"
        texts = {y: [t for t, other in zip(train.texts, train.labels, strict=True) if other == y] for y in train.labels}
        rows = (
            {"text": " ".join((texts[y] * options.joined)[i : i + options.joined]), "label": intents[y]}
            for y in texts
            for i in range(len(texts[y]))
        )
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for repeat in range(options.repeats):
            for case in cases if repeat % 2 == 0 else reversed(cases):
                progress(f"run {repeat + 1} of {options.repeats}, budget {case[0]}{', whole batches' * case[1]}")
                reports[case].append(_train(bundle, data, case, options))
    rows_of = [_row(case, reports[case], reports[cases[0]]) for case in cases]
    return {
        "case": "memory", "steps": options.steps, "batch_size": options.batch_size, "joined": options.joined,
        "rows": rows_of,
    }  # fmt: skip


def _train(bundle: Path, data: Path, case: tuple[str, bool], options: MemoryOptions) -> dict[str, Any]:
    budget, whole = case
    with tempfile.TemporaryDirectory(prefix="edgelora-memory-") as store:
        command = [sys.executable, "-m", "edgelora", "train", str(bundle), "--store", store, "--adapter", "a", "--json"]
        command += ["--data", str(data), "--max-steps", str(options.steps), "--epochs", "1"]
        command += ["--threads", str(options.threads), "--batch-size", str(options.batch_size)]
        command += [] if budget == NONE else ["--ram", budget]
        command += ["--micro-batch-size", str(options.batch_size)] if whole else []
        environment = process_environment(options.threads)
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"edgelora train with the budget {budget} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _row(
    case: tuple[str, bool], reports: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    plans = [r["memory"] for r in reports if r["memory"] is not None]
    return {
        "budget": case[0],
        "whole": case[1],
        "part_size": plans[0]["part_size"] if plans else None,
        "prepacked": plans[0]["prepacked"] if plans else None,
        "work": plans[0]["work"] if plans else 1.0,
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
    texts = f"texts of {body['joined']} utterances, " if body["joined"] > 1 else ""
    lines = [
        f"Memory budgets, all-MiniLM-L6, CLINC150, {texts}batch {body['batch_size']}, {body['steps']} steps",
        "",
        "| `--ram` | samples at a time | packed weights | work | predicted MB | measured MB | step time, ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in body["rows"]:
        planned = row["predicted_mb"] is not None
        told = f"{row['part_size']} | {'yes' if row['prepacked'] else 'no'} | {row['work']:.2f}"
        told = f"{told} | {row['predicted_mb']:.0f}" if planned else "— | yes | 1.00 | —"
        budget = f"{row['budget']}{', batches whole' * row['whole']}"
        lines.append(f"| {budget} | {told} | {row['measured_mb']:.0f} | {row['step_ratio']:.2f} |")
    return "\n".join(lines)
