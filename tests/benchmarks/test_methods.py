"""The comparison of methods goes on where it was stopped, and takes the rate that held out best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clinc, methods, methods_report
from benchmarks.kept_runs import KeptRuns
from tests.benchmarks.runs import command


@pytest.fixture(scope="module")
def methods_run(clinc_base: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what comes of runs, with a page for the table."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "page.md").write_text(f"before\n{methods_report.BEGIN}\nold\n{methods_report.END}\nafter\n")
    return folder


def run_methods(folder: Path, *arguments: str) -> str:
    """`python -m benchmarks methods --quick`; returns what it said on the way."""
    files = ["--json", "runs.json", "--page", "page.md", "--plot", "plot.png"]
    return command(folder, "methods", "--quick", *arguments, *files).stderr


def test_methods_are_pefts_and_a_run_goes_on_where_it_was_stopped(methods_run: Path) -> None:
    assert "LoRA, PEFT, learning rate" not in run_methods(methods_run, "--only", "lora", "--no-peft")
    said = run_methods(methods_run, "--only", "lora")
    assert "LoRA, PEFT, learning rate" in said and "LoRA, learning rate" not in said
    assert "learning rate" not in run_methods(methods_run, "--only", "lora")
    body = json.loads((methods_run / "runs.json").read_text(encoding="utf-8"))
    ours, theirs = body["rows"]
    assert (ours["side"], theirs["side"]) == ("edgelora", "peft")
    assert abs(theirs["ours_above"]) <= 1 / 64
    losses = [run["train_loss"] for run in body["runs"].values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    page = (methods_run / "page.md").read_text(encoding="utf-8")
    assert page.startswith("before\n") and page.endswith("\nafter\n")
    assert "| LoRA, PEFT |" in page and "old" not in page
    assert (methods_run / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_rate_is_that_which_held_out_best() -> None:
    runs = [
        _method_run("lora", seed, rate, held_out)
        for seed, rate, held_out in ((0, 1.0, 0.5), (1, 1.0, 0.9), (0, 2.0, 0.8), (1, 2.0, 0.8))
    ]
    assert methods_report.best_rate(runs, "lora") == 2.0
    runs += [{**_method_run("lora", 2, rate, 0.0), "held_out_accuracy": None, "side": "peft"} for rate in (1.0, 2.0)]
    row, theirs = methods_report.rows(runs)
    assert (theirs["learning_rate"], theirs["seeds"]) == (2.0, [2])
    assert (row["learning_rate"], row["seeds"], row["test_accuracy"]) == (2.0, [0, 1], pytest.approx(0.25))


class Untrained(methods.Seed):
    """A seed whose runs are not measured: which are asked for is what matters."""

    def ours(self, name: str, rate: float) -> dict[str, Any]:
        self.progress(f"{name} {rate:g}")
        run = _method_run(name, self.number, rate, rate)
        return run if self.options.rates > 1 else run | {"held_out_accuracy": None}


def test_rates_that_are_tried_later_are_compared_to_what_was_kept(tmp_path: Path) -> None:
    """A run of one rate alone is not held out; to try rates it runs again, and is there to be chosen."""

    def asked(rates: int) -> list[str]:
        said: list[str] = []
        options = methods.MethodsOptions(rates=rates, peft=False)
        nothing = clinc.Utterances((), ())
        seed = Untrained(0, options, tmp_path, tmp_path, (), nothing, nothing, said.append)
        methods._run_seed(seed, ["lora"], KeptRuns({}, tmp_path / "runs.json"))
        return said

    assert asked(1) == ["lora 0.005"] and asked(1) == []
    assert asked(3) == ["lora 0.005", "lora 0.002", "lora 0.01"] and asked(3) == []
    runs = KeptRuns({}, tmp_path / "runs.json").runs
    assert len(runs) == 3 and all(run["held_out_accuracy"] is not None for run in runs.values())
    assert asked(1) == []


def _method_run(name: str, seed: int, rate: float, held_out: float) -> dict[str, Any]:
    measured = {"held_out_accuracy": held_out, "test_accuracy": 0.5 / rate, "step_seconds": 1.0, "peak_memory_mb": 1.0}
    named = {"method": name, "side": "edgelora", "seed": seed, "title": name, "modules": "x", "learning_rate": rate}
    return named | measured | {"parameters": 1, "file_bytes": 4}
