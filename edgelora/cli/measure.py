"""The verb that measures this device: bench."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelora.cli.common import Verbs, add_bundle, add_verb, emit, end_progress, progress_line, settings_of, table


def add_verbs(verbs: Verbs) -> None:
    """Register the verb."""
    parser = add_verb(
        verbs,
        "bench",
        run_bench,
        "Measure this device: forward, step, switch, memory; and find the best settings for it.",
        "edgelora bench home.edgelora --batch-size 8 --length 32",
    )
    add_bundle(parser, store=False)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=32, help="size of the other dynamic dimensions (32)")
    parser.add_argument("--rank", "-r", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=60, help="how long to try settings of a training step (60; 0: not at all)"
    )


def run_bench(options: argparse.Namespace) -> None:
    """This device's figures, and which settings would be best here."""
    from edgelora.bench import bench
    from edgelora.tuning import advice, tune

    settings = settings_of(options)
    sizes = options.batch_size, options.length, options.rank
    progress_line("measuring inference and training")
    figures = bench(options.bundle, settings, *sizes, options.steps)
    tried = tune(Path(options.bundle), settings, *sizes, options.seconds, progress_line)
    end_progress()
    figures |= {"cold_start_ms": tried[0].cold_start_ms, "peak_memory_mb": tried[0].peak_memory_mb}
    text = bench_text(figures)
    if options.seconds > 0:
        figures["settings"] = [
            {"options": o.trial.options, "cold_start_ms": o.cold_start_ms, "step_ms": o.step_ms,
             "peak_memory_mb": o.peak_memory_mb} for o in tried
        ]  # fmt: skip
        figures["advice"] = advice(tried)
        head = ("settings", "step, ms", "peak memory, MB", "cold start, ms")
        trials = table([(o.trial.options, o.step_ms, o.peak_memory_mb, o.cold_start_ms) for o in tried], head)
        text = "\n".join([text, "", trials, "", *figures["advice"]])
    emit(options, figures, text)


def bench_text(figures: Mapping[str, Any]) -> str:
    """The figures of `bench` with their units, for a person."""
    rows: list[tuple[str, Any, str]] = [
        ("check and open the bundle", figures["load_ms"], "ms"),
        ("a start of training, to the end of the first step", figures["cold_start_ms"], "ms"),
        ("switch to another adapter", figures["switch_ms"], "ms"),
        ("predict one row, no adapter", figures["forward_off_1_ms"], "ms"),
        ("predict one row, with an adapter", figures["forward_on_1_ms"], "ms"),
        ("predict the batch, no adapter", figures["forward_off_ms"], "ms"),
        ("predict the batch, with an adapter", figures["forward_on_ms"], "ms"),
        ("rows a second, one adapter", figures["rows_per_second"], ""),
        ("rows a second, an adapter in each", figures["mixed_rows_per_second"], ""),
        *_language_rows(figures),
        *((f"a step of training, {file}", taken, "ms") for file, taken in figures["step_ms"].items()),
        ("samples a second, training", figures["samples_per_second"], ""),
        ("tokens a second, training", figures["tokens_per_second"], ""),
        ("multiplications of these cores at most", figures["peak_gflops"], "GFLOP/s"),
        ("the share of it that training reaches", figures["gemm_share"], ""),
        ("peak memory of training", figures["peak_memory_mb"], "MB"),
    ]
    head = (
        f"batch {figures['batch_size']}, length {figures['length']}, rank {figures['rank']}, "
        f"{figures['points']} points, {figures['cores']} cores"
    )
    return f"{head}\n\n" + table([row for row in rows if row[1] is not None], ("", "median", "unit"))


def _language_rows(figures: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """The figures of a language model."""
    kinds = {"read": "reading the batch", "write": "writing to the batch", "write_1": "writing to one row"}
    return [
        (f"tokens a second, {what}, {told}", figures[name], "")
        for kind, what in kinds.items()
        for side, told in (("off", "no adapter"), ("on", "with an adapter"))
        if (name := f"{kind.removesuffix('_1')}_tokens_per_second_{side}{'_1' * kind.endswith('_1')}") in figures
    ]
