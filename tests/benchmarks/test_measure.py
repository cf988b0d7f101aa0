"""How figures come of runs, and what of a run that fails."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import duration, figures, speed
from benchmarks.kept_runs import KeptRuns
from benchmarks.limited import let_go, memory_limit, run_limited
from benchmarks.measure import (
    BenchmarkError,
    Contender,
    Run,
    agreement,
    alternate,
    relative_error,
    seconds_to,
    summarize,
)
from tests.benchmarks.runs import made_up


def test_the_summary_takes_medians_and_leaves_out_the_first_step() -> None:
    summary = summarize([made_up([1, 2, 3], [1]), made_up([1, 2, 3], [1], accuracy=[0.3, 0.7])], threshold=0.85)
    assert summary["step_seconds"] == 1.5
    assert summary["training_seconds"] == 12
    assert summary["accuracy"] == pytest.approx([0.4, 0.8])
    assert summary["seconds_to_threshold"] is None
    assert seconds_to(made_up([1, 2, 3], [1]).result, 0.85) == 12


def test_agreement_is_the_worst_of_the_steps_asked_for() -> None:
    found = agreement([made_up([1, 2, 3], [1, 2])], [made_up([1, 2.5, 9], [1, 1])], steps=2)
    assert found["loss"] == 0.5
    assert found["gradients"]["initial"] == {"relative_error": pytest.approx(math.sqrt(0.5)), "tensor": "x"}


def test_relative_error_of_zero_gradients() -> None:
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert relative_error(zero, zero) == 0
    assert relative_error(one, zero) == float("inf")


def test_runs_under_other_settings_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    first = KeptRuns({"epochs": 2, "rates": (1, 2)}, path)
    assert first.get("a", lambda: {"x": 1}) == {"x": 1}
    assert KeptRuns({"epochs": 2, "rates": (1, 2)}, path).get("a", lambda: {"x": 2}) == {"x": 1}
    with pytest.raises(BenchmarkError, match="other settings \\(epochs 2 there, 3 here\\); name another file"):
        KeptRuns({"epochs": 3, "rates": (1, 2)}, path)
    path.write_text("[]")
    with pytest.raises(BenchmarkError, match="holds no runs to go on from"):
        KeptRuns({}, path)


def test_a_contender_that_fails_becomes_a_row(tmp_path: Path) -> None:
    """`json.tool` is a module that refuses the protocol's arguments."""
    failures: dict[str, str] = {}
    runs = alternate([Contender("x", "X", "json.tool")], [tmp_path], tmp_path, 1, lambda _: None, failures)
    assert runs == {"x": []}
    assert failures["x"].startswith("X failed: ")
    assert "usage" in failures["x"] or "error" in failures["x"]
    with pytest.raises(BenchmarkError, match="X failed"):
        alternate([Contender("x", "X", "json.tool")], [tmp_path], tmp_path, 1, lambda _: None)


def test_a_limit_that_is_too_small_is_reported(tmp_path: Path) -> None:
    limited = run_limited(Contender("x", "X", "benchmarks.worker_peft"), tmp_path, tmp_path / "result", 1, 24)
    assert limited["completed"] is False
    assert "X failed" in limited["reason"]


def test_one_that_only_waits_is_ended(tmp_path: Path) -> None:
    waiting = Contender("x", "X", "benchmarks.worker_peft", python=str(tmp_path / "sleeps"))
    Path(waiting.python or "").write_text("#!/bin/sh\nexec sleep 60\n")
    Path(waiting.python or "").chmod(0o755)
    limited = run_limited(waiting, tmp_path, tmp_path / "result", 1, 64, patience=0.5)
    assert limited["completed"] is False
    assert limited["reason"] == "not done within 0.5 seconds"


@pytest.mark.parametrize("again", [False, True])
def test_pages_of_files_count_where_the_cache_let_them_go(again: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(16 << 20))
    reading = f"with open({str(path)!r}, 'rb') as f:\n while f.read(1 << 16): pass"
    with memory_limit(64 << 20) as limit:
        if limit.kind != "memory cgroup":
            pytest.skip("no memory group can be made here")
        if again:
            let_go([path])
        subprocess.run([sys.executable, "-c", reading], check=True, preexec_fn=limit.enter)
        counted = limit.counters()
    assert (counted["limit_files_mb"] > 14) == again
    assert counted["limit_peak_mb"] < 64
    assert counted["limit_kills"] == 0


def test_a_run_says_how_long_it_takes() -> None:
    """Ten steps of a second each by one of ours and two rivals, twice, and as many batches evaluated."""
    step = duration.OURS + 2 * duration.RIVAL
    starts = duration.OUR_START + 2 * duration.RIVAL_START
    assert duration.Round(2, 10, 1, 2).seconds(1.0) == pytest.approx(2 * (10 * step + starts))
    assert duration.Round(2, 10, 1, 2, evaluations=10).seconds(1.0) == pytest.approx(
        2 * (10 * (1 + duration.FORWARD) * step + starts)
    )
    assert [duration.in_words(s) for s in (5, 130, 3600, 7200)] == ["1 minutes", "2 minutes", "60 minutes", "2.0 hours"]


def test_spread_is_the_median_and_its_quartiles() -> None:
    assert figures.spread([4, 0, 1, 3, 2]) == {"median": 2, "low": 1, "high": 3}


def test_a_ratio_is_to_the_best_rival() -> None:
    made = {name: {"s": figures.spread([value])} for name, value in (("us", 1.0), ("slow", 8.0), ("fast", 4.0))}
    assert figures.ratio(made, "us", ["slow", "fast", "absent"], "s") == (0.25, "us to fast")
    assert figures.ratio(made, "absent", ["fast"], "s")[0] is None
    assert figures.ratio(made, "us", [], "s")[0] is None


def test_each_repeat_has_a_ratio_of_its_own() -> None:
    """To the rival that is best over all; steps turn by turn, the first left out; a contender that failed has fewer."""
    runs = {
        "us": [made_up([1], [1], step_seconds=[9.0, 1.0, 6.0, 4.0]), made_up([1], [1], peak_memory_mb=3.0)],
        "slow": [made_up([1], [1], step_seconds=[9.0, 1.0, 1.5, 1.0])],
        "fast": [
            made_up([1], [1], step_seconds=[1.0, 2.0, 3.0, 4.0]),
            made_up([1], [1], step_seconds=[1.0, 4.0, 4.0], peak_memory_mb=2.0),
        ],
    }
    made = {
        who: {"step_seconds": figures.spread([n]), "peak_memory_mb": figures.spread([n])}
        for who, n in (("us", 2.0), ("slow", 9.0), ("fast", 3.0))
    }
    assert figures.each_ratio(runs, made, "us", ["slow", "fast"], "step_seconds") == [1.0, 0.375]
    assert figures.each_ratio(runs, made, "us", ["fast"], "peak_memory_mb") == [1.0, 1.5]
    assert figures.each_ratio(runs, made, "us", ["slow"], "step_seconds") == [4.0]
    assert figures.each_ratio(runs, made, "absent", ["fast"], "step_seconds") == []
    assert figures.each_ratio(runs, made, "us", [], "step_seconds") == []
    assert figures.listed([1.0, 0.375]) == "1.00, 0.38"


def test_an_epoch_after_the_first() -> None:
    run = made_up([1, 2, 3, 4], [1], step_seconds=[9.0, 1.0, 2.0, 3.0], epoch_ends=[1, 3])
    assert figures.epoch_seconds([run])["median"] == 5
    assert figures.epoch_seconds([made_up([1], [1], step_seconds=[9.0, 1.0], epoch_ends=[1])])["median"] == 10


def test_the_share_of_the_peak_is_taken_turn_by_turn() -> None:
    """Step 0 is a turn of its own, steps 1 to 10 the next; a turn's peak is its best product's median."""
    assert [figures.turn_of(step) for step in (0, 1, 10, 11)] == [0, 1, 1, 2]
    peak = Run(
        {"rates": [{"a": 1.0, "b": 5.0}, {"a": 8.0, "b": 2.0}, {"a": 10.0, "b": 40.0}, {"a": 12.0, "b": 2.0}]}, {}
    )
    assert figures.peak_by_turn(peak.result["rates"]) == [5, 10]
    run = made_up([1, 1, 1], [1], step_seconds=[1.0, 1.0, 0.5])
    assert figures.gemm_share([run], [peak], [[99, 5, 5]])["median"] == pytest.approx((0.5 + 1.0) / 2)


def test_the_best_learning_rate_reaches_the_threshold_first() -> None:
    runs = {
        "us 0.1": [made_up([1], [1], accuracy=[0.5, 0.9])],
        "us 0.2": [made_up([1], [1], accuracy=[0.9, 0.9])],
        "them 0.1": [made_up([1], [1], accuracy=[0.2, 0.3])],
        "them 0.2": [made_up([1], [1], accuracy=[0.2, 0.4])],
    }
    assert speed.best_rates(runs, 0.85) == {"us": "us 0.2", "them": "them 0.2"}
