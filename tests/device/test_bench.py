"""`edgelora bench`: figures that hang together, and settings that were really tried."""

from __future__ import annotations

import json
import os

import pytest

from edgelora import tuning
from edgelora.bench import bench
from edgelora.session import SessionSettings
from edgelora.tuning import Outcome, Trial, advice, fastest, tune
from tests.device import tiny


@pytest.mark.parametrize("task", ["sequence-classification", "sentence-embedding"])
def test_every_training_graph_has_a_figure(bundle_of, task):
    figures = bench(bundle_of(task), SessionSettings(threads=1), batch_size=3, length=5, rank=2, steps=2)
    files = [g.name for g in bundle_of(task).iterdir() if g.name.startswith("train-")]
    assert sorted(figures["step_ms"]) == sorted(files)
    assert all(taken > 0 for taken in figures["step_ms"].values())
    assert figures["rows_per_second"] == pytest.approx(3000 / figures["forward_on_ms"])
    for name in ("load_ms", "forward_off_1_ms", "forward_on_1_ms", "mixed_rows_per_second", "switch_ms", "peak_gflops"):
        assert figures[name] > 0, name


def test_the_settings_are_tried_in_processes_of_their_own(bundle):
    tried = tune(bundle, batch_size=2, length=4, rank=1, seconds=120)
    trials = [o.trial for o in tried]
    assert trials[0] == Trial(os.cpu_count() or 1)
    assert any(t.low_memory for t in trials) and any(t.spinning for t in trials)
    assert {t.micro_batch_size for t in trials} == {None, 1}
    assert len(set(trials)) == len(trials)
    assert all(o.step_ms > 0 and o.cold_start_ms > o.step_ms / 100 for o in tried)


def test_time_is_bounded(bundle):
    assert len(tune(bundle, batch_size=2, length=4, rank=1, seconds=0)) == 1


def test_the_advice_is_the_best_of_what_was_tried(monkeypatch, tmp_path):
    """A device on which one thread is fastest, spinning harms, and small parts save memory."""

    def measured(path, trial, *sizes):
        step = (
            10.0 + 5 * (trial.threads > 1) + 3 * trial.spinning + 2 * trial.low_memory + (trial.micro_batch_size == 1)
        )
        return Outcome(trial, 100.0, step, 200.0 - 50 * trial.low_memory - 10 * (trial.micro_batch_size == 1))

    monkeypatch.setattr(tuning, "_measure", measured)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    tried = tune(tmp_path, batch_size=2, length=4, rank=1, seconds=60)
    assert {o.trial.threads for o in tried} == {1, 2, 4}
    assert fastest(tried).trial == Trial(1)
    assert advice(tried) == [
        "fastest: 10.0 ms a step: --threads 1",
        "least memory: 140 MB, 13.0 ms a step: --threads 1 --low-memory --micro-batch-size 1",
    ]


def test_the_command(bundle):
    process = tiny.start(
        "bench", bundle, "--json", "--batch-size", "2", "--length", "4", "--steps", "1", "--seconds", "0"
    )
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    body = json.loads(out)
    assert body["batch_size"] == 2 and "settings" not in body
