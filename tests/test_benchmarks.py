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
import onnx.reference
import pytest

pytest.importorskip("peft", reason="PEFT is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from benchmarks import (
    clinc,
    conversion,
    convolutions,
    duration,
    figures,
    gemm,
    language,
    methods,
    methods_report,
    report,
    speed,
    speed_report,
    stages,
)
from benchmarks.boxes import CLASSES as KINDS
from benchmarks.boxes import Boxes
from benchmarks.job import Images, Job, Settings, Texts
from benchmarks.kept_runs import KeptRuns
from benchmarks.limited import run_limited
from benchmarks.measure import (
    ROOT,
    BenchmarkError,
    Contender,
    Run,
    agreement,
    alternate,
    relative_error,
    seconds_to,
    summarize,
)
from benchmarks.rivals import RIVALS, Unavailable, onnxsim_model, peft
from benchmarks.rivals.base import Place
from benchmarks.rivals.environments import environment
from edgelora.errors import EdgeLoraError
from edgelora_tools.recipes import fetch, load_recipe
from tests.convert.bundles import to_bundle
from tests.convert.networks import FLOAT, Net, save

DATA = Path(os.environ.get("EDGELORA_DATA", Path(__file__).parents[2] / "shared" / "data"))

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
    for made in (body["seconds"], body["peak_bytes"], body["weights_bytes"]):
        assert set(made) == {"with", "without"}
        assert min(made.values()) > 0
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


@pytest.fixture(scope="module")
def methods_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what comes of runs, with a page for the table."""
    try:
        clinc.find_data()
        fetch(load_recipe(clinc.RECIPE))
    except (BenchmarkError, EdgeLoraError) as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("methods")
    (folder / "page.md").write_text(f"before\n{methods_report.BEGIN}\nold\n{methods_report.END}\nafter\n")
    return folder


def run_methods(folder: Path, *arguments: str) -> str:
    """`python -m benchmarks methods --quick`; returns what it said on the way."""
    files = ["--json", "runs.json", "--page", "page.md", "--plot", "plot.png"]
    command = [sys.executable, "-m", "benchmarks", "methods", "--quick", *arguments, *files]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


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
def speed_body(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    try:
        clinc.find_data()
        fetch(load_recipe(clinc.RECIPE))
    except (BenchmarkError, EdgeLoraError) as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("speed")
    files = [str(folder / name) for name in ("speed.json", "speed.md")]
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "speed",
        "--quick",
        "--max-steps",
        "3",
        "--variants",
        "fp32",
        "small",
        "budget",
    ]
    command += ["--rivals", "peft-sdpa", "--json", files[0], "--markdown", files[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
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


def test_torch_compile_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peft.shutil, "which", lambda _: None)
    with pytest.raises(Unavailable, match="compiler"):
        peft.COMPILED.contender(Place(tmp_path, tmp_path, tmp_path, 1, print), "all")


def test_an_environment_has_a_limit_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGELORA_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match=r"environment for toy: not done after 0 s"):
        environment("toy", ("toy==1",), print, limit=0.01)
    assert not list(tmp_path.rglob("packages.txt"))


def test_the_graph_for_onnxsim_means_what_it_meant() -> None:
    """GELU and Flatten, of which its trainer knows neither, written out."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [make("Flatten", ["x"], ["flat"], axis=-1), make("Gelu", ["flat"], ["y"])],
        "g",
        [value("x", FLOAT, [2, 3, 4])],
        [value("y", FLOAT, [6, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    onnxsim_model.write_out_gelu(model.graph)
    model = onnx.shape_inference.infer_shapes(model)
    onnxsim_model.flatten_to_reshape(model.graph)
    assert {node.op_type for node in model.graph.node} == {"Reshape", "Mul", "Erf", "Add"}
    (made,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(np.asarray(made), np.asarray(expected), rtol=1e-5, atol=1e-6)


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


def test_what_was_not_run_is_not_said_to_have_failed(speed_body: dict[str, Any]) -> None:
    left_out = {**speed_body, "limited": {"completed": None, "reason": "budget was left out"}}
    assert "Not run within the hard limit: budget was left out." in speed_report.markdown(left_out)


def test_a_run_says_how_long_it_takes() -> None:
    """Ten steps of a second each by one of ours and two rivals, twice, and as many batches evaluated."""
    step = duration.OURS + 2 * duration.RIVAL
    starts = duration.OUR_START + 2 * duration.RIVAL_START
    assert duration.Round(2, 10, 1, 2).seconds(1.0) == pytest.approx(2 * (10 * step + starts))
    assert duration.Round(2, 10, 1, 2, evaluations=10).seconds(1.0) == pytest.approx(
        2 * (10 * (1 + duration.FORWARD) * step + starts)
    )
    assert [duration.in_words(s) for s in (5, 130, 3600, 7200)] == ["1 minutes", "2 minutes", "60 minutes", "2.0 hours"]


def test_rivals_have_names_of_their_own() -> None:
    assert len({rival.name for rival in RIVALS}) == len(RIVALS)


def test_spread_is_the_median_and_its_quartiles() -> None:
    assert figures.spread([4, 0, 1, 3, 2]) == {"median": 2, "low": 1, "high": 3}


def test_a_ratio_is_to_the_best_rival() -> None:
    made = {name: {"s": figures.spread([value])} for name, value in (("us", 1.0), ("slow", 8.0), ("fast", 4.0))}
    assert figures.ratio(made, "us", ["slow", "fast", "absent"], "s") == (0.25, "us to fast")
    assert figures.ratio(made, "absent", ["fast"], "s")[0] is None
    assert figures.ratio(made, "us", [], "s")[0] is None


def test_an_epoch_after_the_first() -> None:
    run = _run([1, 2, 3, 4], [1], step_seconds=[9.0, 1.0, 2.0, 3.0], epoch_ends=[1, 3])
    assert figures.epoch_seconds([run])["median"] == 5
    assert figures.epoch_seconds([_run([1], [1], step_seconds=[9.0, 1.0], epoch_ends=[1])])["median"] == 10


def test_the_share_of_the_peak_is_taken_turn_by_turn() -> None:
    """Step 0 is a turn of its own, steps 1 to 10 the next; a turn's peak is its best product's median."""
    assert [figures.turn_of(step) for step in (0, 1, 10, 11)] == [0, 1, 1, 2]
    peak = Run(
        {"rates": [{"a": 1.0, "b": 5.0}, {"a": 8.0, "b": 2.0}, {"a": 10.0, "b": 40.0}, {"a": 12.0, "b": 2.0}]}, {}
    )
    assert figures.peak_by_turn(peak.result["rates"]) == [5, 10]
    run = _run([1, 1, 1], [1], step_seconds=[1.0, 1.0, 0.5])
    assert figures.gemm_share([run], [peak], [[99, 5, 5]])["median"] == pytest.approx((0.5 + 1.0) / 2)


def test_the_best_learning_rate_reaches_the_threshold_first() -> None:
    runs = {
        "us 0.1": [_run([1], [1], accuracy=[0.5, 0.9])],
        "us 0.2": [_run([1], [1], accuracy=[0.9, 0.9])],
        "them 0.1": [_run([1], [1], accuracy=[0.2, 0.3])],
        "them 0.2": [_run([1], [1], accuracy=[0.2, 0.4])],
    }
    assert speed.best_rates(runs, 0.85) == {"us": "us 0.2", "them": "them 0.2"}


def test_operations_of_a_step_by_hand(tmp_path: Path) -> None:
    """x -> frozen P -> frozen W with an adapter -> frozen V: P has no gradient, V needs that of its input."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = {"P": (8, 16), "W": (16, 32), "V": (32, 4)}
    graph = onnx.helper.make_graph(
        [
            make("MatMul", ["x", "P"], ["h"]),
            make("MatMul", ["h", "W"], ["base"]),
            make("MatMul", ["h", "A"], ["low"]),
            make("MatMul", ["low", "B"], ["delta"]),
            make("Add", ["base", "delta"], ["z"]),
            make("MatMul", ["z", "V"], ["y"]),
        ],
        "g",
        [value("x", FLOAT, ["n", 8]), value("A", FLOAT, [16, "r"]), value("B", FLOAT, ["r", 32])],
        [value("y", FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    path = tmp_path / "forward.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    count = gemm.OperationCount(path, frozenset({"A", "B"}))
    n, r = 5, 2
    feeds = {name: np.zeros(shape, np.float32) for name, shape in (("x", (n, 8)), ("A", (16, r)), ("B", (r, 32)))}
    frozen_before = 2 * n * 8 * 16
    frozen_beside = 2 * n * 16 * 32
    frozen_behind = 2 * (2 * n * 32 * 4)
    adapter = 2 * (2 * n * 16 * r) + 3 * (2 * n * r * 32)
    assert count.step(feeds) == frozen_before + frozen_beside + frozen_behind + adapter
    assert count.largest(feeds, 1) == [[n, 16, 32]]


def test_pictures_of_a_job_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    images = Images(rng.standard_normal((5, 3, 4, 6), np.float32), np.arange(5) % 2)
    settings = Settings("bundle", "model", 2, 1, 2, 1e-3, None)
    Job(tmp_path, settings, images, images, np.stack([rng.permutation(5)])).write()
    again = Job.read(tmp_path)
    rows = again.batches()[0]
    np.testing.assert_array_equal(again.train.feeds(rows)["image"], images.pixels[rows])
    np.testing.assert_array_equal(np.concatenate(list(again.test.evaluation_batches())), np.arange(5))
    assert (again.steps_per_epoch, again.train.labels.tolist()) == (3, images.labels.tolist())
    assert again.train.boxes is None


def test_objects_of_a_job_are_read_back_and_cost_alike_in_any_parts(tmp_path):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 32, (4, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 32, (4, 2))], axis=1).astype(np.float32)
    images = Images(rng.standard_normal((4, 3, 64, 64), np.float32), np.arange(4), boxes, "images")
    settings = Settings("bundle", "model", 2, 1, 2, 1e-3, None, image_input="images")
    Job(tmp_path, settings, images, images, np.stack([np.arange(4)])).write()
    read = Job.read(tmp_path).train
    assert set(read.feeds(np.arange(2))) == {"images"}
    objects, rows = Boxes(read.boxes, read.labels, (64, 64)), np.asarray([2, 0, 3])
    made = rng.uniform(0.01, 0.9, (3, 5 + KINDS, 4, 4)).astype(np.float32)
    loss, slope = objects.loss(made, rows)
    parts = [objects.loss(made[part], rows[part]) for part in (np.s_[:1], np.s_[1:])]
    assert loss == pytest.approx(sum(part for part, _ in parts))
    np.testing.assert_array_equal(slope, np.concatenate([part for _, part in parts]))
    other, _ = objects.loss(made, rows[::-1])
    assert other != pytest.approx(loss)  # what is in a picture counts


@pytest.mark.parametrize("kind", ["strided depthwise 5×5", "strided 1-D", "1×1, late"])
def test_the_ways_of_an_input_gradient_agree_and_are_told(kind):
    body = convolutions.run([1], 2, 1, [kind], lambda _: None)
    (row,) = body["rows"]
    assert {"forward", "transposed"} < set(row["seconds"])
    assert kind in convolutions.markdown(body)


def test_unknown_convolutions_are_named():
    with pytest.raises(BenchmarkError, match=r"no convolution 9×9; there are 1×1"):
        convolutions.run([1], 2, 1, ["9×9"], lambda _: None)


def test_a_language_models_training_is_pefts(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (DATA / "tinyshakespeare.zip").is_file():
        pytest.skip(f"{DATA / 'tinyshakespeare.zip'} is absent: set EDGELORA_DATA")
    monkeypatch.setenv("EDGELORA_CACHE", str(tmp_path))
    options = language.LanguageOptions(
        model=language_folder, rounds=("step",), bases=("float32",), rivals=("peft-again",)
    ).quick()
    body = language.run(options, lambda _: None)
    found = body["rounds"]["step"]
    assert found["agreement"]["loss"] < 1e-4
    assert all(worst["relative_error"] < 1e-4 for worst in found["agreement"]["gradients"].values())
    ours, small, rival = (found["cost"][who] for who in ("float32", "float32-small", "peft-again"))
    assert small["plan"]["predicted"] <= options.ram
    assert ours["held_out_loss"]["median"] == pytest.approx(rival["held_out_loss"]["median"], abs=1e-4)
    assert body["ratios"]["peak"] == small["peak_memory_mb"]["median"] / rival["peak_memory_mb"]["median"]
    table = language.markdown(body)
    assert "| fp32 step |" in " ".join(table.split())
    assert "PEFT, sdpa, gradient checkpointing" in table
