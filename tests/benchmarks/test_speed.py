"""The comparison of speed: every ratio or the reason why there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed_report
from benchmarks.measure import ROOT
from tests.benchmarks.runs import command

RATIO_KEYS = {
    "step_fp32",
    "step_int8",
    "time_to_085",
    "cached_epoch",
    "peak_memory",
    "cold_start",
    "gemm_share",
}


@pytest.fixture(scope="module")
def speed_body(clinc_base: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("speed")
    files = [str(folder / name) for name in ("speed.json", "speed.md")]
    few = ["--max-steps", "3", "--variants", "fp32", "small", "budget", "--rivals", "peft-sdpa"]
    done = command(ROOT, "speed", "--quick", *few, "--json", files[0], "--markdown", files[1])
    assert Path(files[1]).read_text(encoding="utf-8") == done.stdout
    assert "minutes where nothing else wants the cores" in done.stderr
    return json.loads(Path(files[0]).read_text(encoding="utf-8"))


def test_speed_reports_ratios_or_reasons(speed_body: dict[str, Any]) -> None:
    assert set(speed_body["ratios"]) == set(speed_body["reasons"]) == RATIO_KEYS
    for key in ("step_fp32", "peak_memory", "gemm_share"):
        assert speed_body["ratios"][key] > 0
    assert speed_body["ratios"]["gemm_share"] < 1
    assert speed_body["ratios"]["time_to_085"] is None
    assert "left out" in speed_body["reasons"]["time_to_085"]
    assert all(speed_body["reasons"].values())


def test_speed_runs_within_a_hard_limit(speed_body: dict[str, Any]) -> None:
    assert speed_body["limited"]["kind"] in ("memory cgroup", "RLIMIT_DATA")
    assert "completed" in speed_body["limited"]


def test_the_same_computation_has_the_same_losses(speed_body: dict[str, Any]) -> None:
    for name in ("small", "peft-sdpa"):
        assert speed_body["cost"][name]["loss_difference"] <= 1e-4


def test_the_speed_report_has_a_plot(speed_body: dict[str, Any], tmp_path: Path) -> None:
    speed_report.plot(speed_body, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_run_is_not_said_to_have_failed(speed_body: dict[str, Any]) -> None:
    left_out = {**speed_body, "limited": {"completed": None, "reason": "budget was left out"}}
    assert "Not run within the hard limit: budget was left out." in speed_report.markdown(left_out)
