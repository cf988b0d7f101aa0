"""The benchmark runs both sides to a well-formed report, and ours follows PEFT's losses and gradients.

No test looks at a time: they are the benchmark's to report.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("peft", reason="PEFT is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from benchmarks import clinc, conversion, report, stages
from benchmarks.job import Job, Settings, Texts
from benchmarks.measure import ROOT, BenchmarkError, Run, agreement, relative_error, seconds_to, summarize
from edgelora.errors import EdgeLoraError
from edgelora_tools.recipes import fetch, load_recipe
from tests.convert.bundles import to_bundle
from tests.convert.networks import FLOAT, Net, save

DEVICE_LACKS = {"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "peft", "tokenizers", "edgelora_tools"}

FIGURES = ("training_seconds", "training_cpu_seconds", "step_seconds", "peak_memory_mb", "cold_start_seconds")


@pytest.fixture(scope="module")
def report_body(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    try:
        clinc.find_data()
        fetch(load_recipe(clinc.RECIPE))
    except (BenchmarkError, EdgeLoraError) as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("report") / "clinc.json"
    command = [sys.executable, "-m", "benchmarks", "clinc", "--quick", "--json", str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| step, median, ms" in done.stdout
    assert "run 1 of 1" in done.stderr
    return json.loads(path.read_text(encoding="utf-8"))


def test_both_sides_report_every_figure(report_body: dict[str, Any]) -> None:
    assert set(report_body["contenders"]) == {"edgelora", "peft"}
    for contender in report_body["contenders"].values():
        (run,) = contender["runs"]
        assert len(run["losses"]) == len(run["step_seconds"]) == 6
        assert len(run["accuracy"]) == len(run["epoch_ends"]) == 1
        assert all(0 <= accuracy <= 1 for accuracy in run["accuracy"])
        for key in FIGURES:
            assert contender["summary"][key] > 0
            assert report_body["ratios"][key] > 0
    assert report_body["paired_step_ratio"]["median"] > 0


def test_losses_follow_peft_step_for_step(report_body: dict[str, Any]) -> None:
    assert report_body["agreement"]["steps"] == 6
    assert report_body["agreement"]["loss"] <= 1e-3


def test_every_gradient_is_pefts(report_body: dict[str, Any]) -> None:
    assert report_body["agreement"]["tensors"] == 12 * 2 + 2
    assert set(report_body["agreement"]["gradients"]) == {"initial", "probe"}
    for worst in report_body["agreement"]["gradients"].values():
        assert worst["relative_error"] <= 1e-4, worst["tensor"]


def test_our_worker_is_the_device_package_alone(report_body: dict[str, Any]) -> None:
    (run,) = report_body["contenders"]["edgelora"]["runs"]
    assert not DEVICE_LACKS & set(run["modules"])


def test_the_report_has_a_plot(report_body: dict[str, Any], tmp_path: Path) -> None:
    report.plot(report_body, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_job_survives_the_way_through_its_files(tmp_path: Path) -> None:
    settings = Settings("b", "m", threads=1, epochs=2, batch_size=2, learning_rate=0.1, max_steps=None, pad_id=7)
    texts = Texts.of([[1, 2, 3], [4], [5, 6]], [0, 1, 1], pad_id=7)
    Job(tmp_path, settings, texts, texts, np.array([[0, 1, 2], [2, 1, 0]])).write()
    job = Job.read(tmp_path)
    assert [rows.tolist() for rows in job.batches()] == [[0, 1], [2], [2, 1], [0]]
    assert [job.ends_epoch(step) for step in range(4)] == [False, True, False, True]
    feeds = job.train.feeds(np.array([1, 2]))
    assert feeds["input_ids"].tolist() == [[4, 7], [5, 6]]
    assert feeds["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert np.concatenate(list(job.test.evaluation_batches())).tolist() == [1, 2, 0]


def _run(losses: list[float], gradient: list[float], **extra: Any) -> Run:
    result = {
        "losses": losses,
        "step_seconds": [9.0, 1.0, 2.0],
        "step_cpu_seconds": [9.0, 1.0, 2.0],
        "epoch_ends": [1, 2],
        "accuracy": [0.5, 0.9],
        "peak_memory_mb": 1.0,
        "peak_memory_with_evaluation_mb": 2.0,
        "cold_start_seconds": 3.0,
    }
    return Run(result | extra, {"initial/x": np.array(gradient, np.float32)})


def test_the_summary_takes_medians_and_leaves_out_the_first_step() -> None:
    summary = summarize([_run([1, 2, 3], [1]), _run([1, 2, 3], [1], accuracy=[0.3, 0.7])], threshold=0.85)
    assert summary["step_seconds"] == 1.5
    assert summary["training_seconds"] == 12
    assert summary["accuracy"] == pytest.approx([0.4, 0.8])
    assert summary["seconds_to_threshold"] is None
    assert seconds_to(_run([1, 2, 3], [1]).result, 0.85) == 12


def test_agreement_is_the_worst_of_the_steps_asked_for() -> None:
    found = agreement([_run([1, 2, 3], [1, 2])], [_run([1, 2.5, 9], [1, 1])], steps=2)
    assert found["loss"] == 0.5
    assert found["gradients"]["initial"] == {"relative_error": pytest.approx(math.sqrt(0.5)), "tensor": "x"}


def test_relative_error_of_zero_gradients() -> None:
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert relative_error(zero, zero) == 0
    assert relative_error(one, zero) == float("inf")


def test_missing_data_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGELORA_DATA", str(tmp_path))
    with pytest.raises(BenchmarkError, match=r"clinc150\.zip is missing; say where"):
        clinc.find_data()


def test_conversion_reports_nodes_seconds_and_memory():
    body = conversion.run([1, 2], "thin", lambda _: None)
    first, second = body["conversions"]
    assert 0 < first["nodes"] < second["nodes"]
    assert first["seconds"] > 0
    assert first["peak_bytes"] is None or first["peak_bytes"] > 1e7
    table = conversion.markdown(body)
    assert f"| 2 | {second['nodes']:,} |" in table


@pytest.fixture
def gated(tmp_path):
    """first -> SiLU -> second, as a file."""
    net = Net(17)
    first = net.linear("x", "first", 8, 64)
    net.output(net.linear(net("Mul", first, net("Sigmoid", first)), "second", 64, 8), "y")
    return save(net.model([("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 8])]), tmp_path)


@pytest.mark.parametrize("stage", list(stages.STAGES))
def test_a_stage_is_measured_with_and_without(stage, gated):
    body = stages.run(stage, str(gated), batch=3, length=1, steps=2, progress=lambda _: None)
    for figures in (body["seconds"], body["peak_bytes"], body["weights_bytes"]):
        assert set(figures) == {"with", "without"}
        assert min(figures.values()) > 0
    assert "| step, ms (median) |" in stages.markdown(body)


def test_a_stage_is_really_left_out(gated, tmp_path):
    """SiLU's own rule needs fewer nodes than those of its parts."""
    whole = to_bundle(gated, tmp_path, "whole")
    with stages.left_out("composites"):
        parts = to_bundle(gated, tmp_path, "parts")
    fewer, more = (len(training_nodes(bundle)) for bundle in (whole, parts))
    assert fewer < more


def training_nodes(bundle):
    file = bundle.path / bundle.training("cotangent", dropout=False).file
    return onnx.load(file, load_external_data=False).graph.node
