"""`edgelora bench`: figures that hang together, and settings that were really tried."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from edgelora import tuning
from edgelora.bench import bench
from edgelora.bundle import Bundle
from edgelora.cores import available_cores
from edgelora.drawn import drawn_trainer
from edgelora.session import SessionSettings
from edgelora.tuning import Outcome, Trial, advice, fastest, tune
from tests.device import tiny


@pytest.mark.parametrize("task", ["sequence-classification", "sentence-embedding", "token-classification"])
def test_every_training_graph_has_a_figure(bundle_of, task):
    figures = bench(bundle_of(task), SessionSettings(threads=2), batch_size=4, length=5, rank=2, steps=2)
    files = [g.name for g in bundle_of(task).iterdir() if g.name.startswith("train-")]
    assert sorted(figures["step_ms"]) == sorted(files)
    no_dropout = "train-cotangent-dropout.onnx"  # a loss of the caller's own sees the outputs without it
    assert [file for file, taken in figures["step_ms"].items() if taken is None] == [no_dropout]
    assert all(taken is None or taken > 0 for taken in figures["step_ms"].values())
    assert figures["rows_per_second"] == pytest.approx(4000 / figures["forward_on_ms"])
    for name in ("load_ms", "forward_off_1_ms", "forward_on_1_ms", "mixed_rows_per_second", "switch_ms", "peak_gflops"):
        assert figures[name] > 0, name
    first = figures["step_ms"][next(iter(figures["step_ms"]))]
    assert figures["samples_per_second"] == pytest.approx(4000 / first)
    texts = 2 if task == "sentence-embedding" else 1
    assert figures["tokens_per_second"] == pytest.approx(texts * 5 * figures["samples_per_second"])
    assert 0 < figures["gemm_share"] < 1


def test_a_step_is_one_of_train(bundle):
    """A part of the batch on each core, by sessions of one thread."""
    opened = Bundle.open(bundle, SessionSettings(threads=2))
    record = opened.training("cross-entropy", dropout=False)
    trainer = drawn_trainer(opened, record, batch_size=4, length=5, rank=2)
    assert np.isfinite(trainer.step(np.arange(4)).loss)
    (settings,) = {settings.threads for file, settings in opened._graphs if file == record.file}
    assert settings == 1


@pytest.mark.parametrize("task", ["regression", "feature-extraction"])
def test_tasks_without_labels_have_a_step(bundle_of, task):
    opened = Bundle.open(bundle_of(task))
    trainer = drawn_trainer(opened, opened.manifest.training[0], batch_size=4, length=5, rank=2)
    assert np.isfinite(trainer.step(np.arange(4)).loss)


def test_the_settings_are_tried_in_processes_of_their_own(bundle):
    tried = tune(bundle, SessionSettings(), batch_size=2, length=4, rank=1, seconds=120)
    trials = [o.trial for o in tried]
    assert trials[0] == Trial(available_cores())
    assert any(t.low_memory for t in trials) and {t.spinning for t in trials} == {None, True, False}
    assert {t.micro_batch_size for t in trials} == {None, 1}
    assert len(set(trials)) == len(trials)
    assert all(o.step_ms > 0 and o.cold_start_ms > o.step_ms / 100 for o in tried)


def test_time_is_bounded(bundle):
    settings = SessionSettings(threads=1, low_memory=True)
    (outcome,) = tune(bundle, settings, batch_size=2, length=4, rank=1, seconds=0)
    assert outcome.trial == Trial(1, low_memory=True)


def test_the_advice_is_the_best_of_what_was_tried(monkeypatch, tmp_path):
    """A device on which one thread is fastest, spinning harms, and small parts save memory."""

    def measured(path, trial, *sizes):
        step = (
            10.0
            + 5 * (trial.threads > 1)
            + 3 * bool(trial.spinning)
            + 2 * trial.low_memory
            + (trial.micro_batch_size == 1)
        )
        return Outcome(trial, 100.0, step, 200.0 - 50 * trial.low_memory - 10 * (trial.micro_batch_size == 1))

    monkeypatch.setattr(tuning, "_measure", measured)
    monkeypatch.setattr(tuning, "available_cores", lambda: 4)
    tried = tune(tmp_path, SessionSettings(), batch_size=2, length=4, rank=1, seconds=60)
    assert {o.trial.threads for o in tried} == {1, 2, 4}
    assert fastest(tried).trial == Trial(1)
    assert advice(tried) == [
        "fastest: 10.0 ms a step: --threads 1",
        "least memory: 140 MB, 13.0 ms a step: --threads 1 --low-memory --micro-batch-size 1",
    ]


def test_noise_recommends_nothing(monkeypatch, tmp_path):
    """Steps of 100 ms, give or take two: the settings that are asked for stay."""
    steps = itertools.cycle([100.0, 98.0, 101.0, 99.0])
    monkeypatch.setattr(tuning, "_measure", lambda path, trial, *sizes: Outcome(trial, 1.0, next(steps), None))
    monkeypatch.setattr(tuning, "available_cores", lambda: 2)
    tried = tune(tmp_path, SessionSettings(threads=2), batch_size=4, length=4, rank=1, seconds=60)
    assert len(tried) > 4
    assert fastest(tried).trial == Trial(2)


def test_the_command(bundle):
    process = tiny.start(
        "bench", bundle, "--json", "--batch-size", "2", "--length", "4", "--steps", "1", "--seconds", "0"
    )
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    body = json.loads(out)
    assert body["batch_size"] == 2 and "settings" not in body
    assert body["cold_start_ms"] > 0 and body["gemm_share"] > 0
