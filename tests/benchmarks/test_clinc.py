"""The benchmark runs both sides to a well-formed report, and ours follows PEFT's losses and gradients.

No test looks at a time: they are the benchmark's to report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clinc, report
from benchmarks.measure import ROOT, BenchmarkError
from tests.benchmarks.runs import command

DEVICE_LACKS = {"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "peft", "tokenizers", "edgelora_tools"}

FIGURES = ("training_seconds", "training_cpu_seconds", "step_seconds", "peak_memory_mb", "cold_start_seconds")


@pytest.fixture(scope="module")
def report_body(clinc_base: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("report") / "clinc.json"
    done = command(ROOT, "clinc", "--quick", "--json", str(path))
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


def test_missing_data_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGELORA_DATA", str(tmp_path))
    with pytest.raises(BenchmarkError, match=r"clinc150\.zip is missing; say where"):
        clinc.find_data()
