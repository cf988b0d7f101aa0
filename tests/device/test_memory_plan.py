"""A memory budget: the peak is predicted, kept under a hard limit, or refused before any work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.data import TextSample
from edgelora.errors import ConfigError, ConversionError, EdgeLoraError
from edgelora.manifest import Budget, Manifest, MemoryTable
from edgelora.mapped_pages import added
from edgelora.memory import parse_size
from edgelora.memory_forecast import forecast
from edgelora.memory_layout import LAYOUT_FILE
from edgelora.memory_moments import ARENA
from edgelora.memory_plan import MemoryPlan, candidate_plans, plan_memory
from edgelora.methods import PrefixTuningConfig, PromptTuningConfig
from edgelora.runtime import Model
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training import train
from edgelora.training_config import TrainingConfig
from edgelora.training_start import default_budget
from edgelora_tools import memory_table
from tests.convert.bundles import to_bundle
from tests.convert.networks import Net, perceptron
from tests.device.tiny import MAX_LENGTH, commands, start_python, write_bundle

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
SAMPLES = [TextSample(row["text"], row["label"]) for row in commands(24)]
WIDTH, DEPTH, BATCH = 512, 12, 2048
PLENTY = 10**11  # bytes: more than a process of tests holds, whatever ran in it before

TRAIN = """
import json, sys
import numpy as np
from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.memory import peak_memory
from edgelora.memory_plan import follow, plan_memory
from edgelora.objectives import Regression
from edgelora.tasks import ArrayInputs
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig

path, batch, width, budget, limit, whole = sys.argv[1], *map(int, sys.argv[2:])
rng = np.random.default_rng(0)
bundle = Bundle.open(path)
adapter = new_adapter(bundle.manifest, LoraConfig(r=4, lora_alpha=4), None, outputs=2, rng=rng)
x = rng.standard_normal((batch, width), np.float32)
objective = Regression(ArrayInputs({"x": x}), rng.standard_normal((batch, 2), np.float32))
part = batch if whole else None
config = TrainingConfig(batch_size=batch, micro_batch_size=part, learning_rate=1e-4, max_grad_norm=0.0)
trainer = Trainer(bundle, adapter, objective, config)
told = {}
if budget:
    plan = plan_memory(trainer, None, budget)
    follow(plan, trainer)
    told = plan.to_dict()
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
loss = [trainer.step(np.arange(batch)).loss for _ in range(2)]
norm = float(np.linalg.norm(np.concatenate([g.ravel() for g in trainer.gradients().values()])))
print(json.dumps({"peak": peak_memory(), "plan": told, "loss": loss, "norm": norm}))
"""


def deep(net: Net, x: str) -> str:
    for layer in range(DEPTH):
        x = net("Tanh", net.linear(x, f"layer{layer}", WIDTH, WIDTH))
    return x


@pytest.fixture(scope="module")
def deep_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    model = perceptron(build=deep, width=WIDTH, output=8)
    return to_bundle(model, folder, task="regression", pooling="pooler", batch_size=2 * BATCH).path


def measured(
    bundle: Path, budget: int, limit: int = 0, whole: bool = False, batch: int = BATCH, width: int = WIDTH
) -> dict[str, Any]:
    process = start_python("-c", TRAIN, bundle, *map(str, (batch, width, budget, limit, int(whole))))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


@LINUX
def test_the_peak_is_predicted_within_a_tenth_and_the_budget_is_kept(deep_bundle: Path):
    free = measured(deep_bundle, 10**12)
    assert 0.9 < free["peak"] / free["plan"]["predicted"] < 1.1
    assert free["plan"]["part_size"] == BATCH
    assert free["plan"]["prepacked"]
    assert free["plan"]["work"] == 1
    budget = int(0.7 * free["peak"])
    tight = measured(deep_bundle, budget)
    assert tight["peak"] < budget * 1.02
    assert 0.9 < tight["peak"] / tight["plan"]["predicted"] < 1.1
    assert tight["plan"]["part_size"] < BATCH
    np.testing.assert_allclose(tight["loss"], free["loss"], rtol=1e-5)
    np.testing.assert_allclose(tight["norm"], free["norm"], rtol=1e-5)


@LINUX
def test_a_batch_that_stays_whole_is_computed_twice_in_part(deep_bundle: Path):
    free = measured(deep_bundle, 10**12, whole=True)
    budget = int(0.75 * free["peak"])
    tight = measured(deep_bundle, budget, whole=True)
    assert tight["plan"]["part_size"] == BATCH
    assert tight["plan"]["file"] == "train-mse-recomputed.onnx"
    assert 1 < tight["plan"]["work"] < 1.5
    assert tight["peak"] < budget * 1.02
    assert 0.9 < tight["peak"] / tight["plan"]["predicted"] < 1.1
    np.testing.assert_allclose(tight["loss"], free["loss"], rtol=1e-6)
    np.testing.assert_allclose(tight["norm"], free["norm"], rtol=1e-6)


@LINUX
def test_the_planned_run_completes_under_a_limit_in_which_the_plain_one_does_not(deep_bundle: Path):
    """RLIMIT_DATA counts private memory: what a plan holds beside the mapped weights and the libraries' code."""
    budget = 164_000_000
    assert measured(deep_bundle, budget, limit=budget)["plan"]["predicted"] <= budget
    process = start_python("-c", TRAIN, deep_bundle, *map(str, (BATCH, WIDTH, 0, budget, 0)))
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "alloc" in err.lower() or "memory" in err.lower()


@LINUX
def test_pieces_of_pictures_are_foretold(tmp_path: Path):
    """Of a batch of pictures, as many as stay near the cores are computed at once: not all.

    Two pieces need not hold the most at the same time.
    """
    channels, side, batch, net = 16, 64, 64, Net(17)
    x = net("Reshape", "x", net.const([0, 4, side, side], np.int64))
    for layer in range(4):
        kernel = net.weight(f"layer{layer}.weight", channels, channels if layer else 4, 3, 3)
        x = net("Tanh", net("Conv", x, kernel, pads=[1, 1, 1, 1]))
    net.output(net.reduce_mean(x, [2, 3], keepdims=0), "y")
    width, real = 4 * side**2, onnx.TensorProto.FLOAT
    model = net.model([("x", real, ["batch", width])], [("y", real, ["batch", channels])], check=False)
    targets = tuple(f"layer{layer}" for layer in range(4))
    bundle = to_bundle(model, tmp_path, task="regression", pooling="pooler", target_modules=targets).path
    free = measured(bundle, 10**12, batch=batch, width=width)
    assert 0.75 < free["peak"] / free["plan"]["predicted"] < 1.1
    table = Bundle.open(bundle).manifest.memory[free["plan"]["file"]]
    assert free["plan"]["results"] < 0.8 * ARENA * table.peak({"batch": batch})


@LINUX
def test_what_conversion_foretells_is_what_training_takes(deep_bundle: Path):
    told = forecast(deep_bundle, 10**12, BATCH, 128)
    assert told.file == "train-mse.onnx"
    assert 0.9 < measured(deep_bundle, 0)["peak"] / told.predicted < 1.1
    with pytest.raises(ConfigError, match=r"too little: the smallest peak possible is \d+ MB"):
        forecast(deep_bundle, 1_000_000, BATCH, 128)


AFTER_PREFIX = """
import json, sys
from dataclasses import replace
import numpy as np
from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.memory import peak_memory
from edgelora.memory_plan import follow, plan_memory
from edgelora.objectives import Regression
from edgelora.tasks import ArrayInputs
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig

path, batch, width, budget, samples, held_out, options = sys.argv[1], *map(int, sys.argv[2:7]), json.loads(sys.argv[7])
rng = np.random.default_rng(0)
bundle = Bundle.open(path)
points = tuple(bundle.manifest.prefixes[0].points)
lora = LoraConfig(r=4, lora_alpha=4, target_modules=points)
adapter = new_adapter(bundle.manifest, lora, None, outputs=2, rng=rng)

def objective(count):
    x = rng.standard_normal((count, width), np.float32)
    return Regression(ArrayInputs({"x": x}), rng.standard_normal((count, 2), np.float32))

config = TrainingConfig(batch_size=batch, learning_rate=1e-4, max_grad_norm=0.0, train_last=2, **options)
trainer, validation = Trainer(bundle, adapter, objective(samples), config), objective(held_out) if held_out else None
plan = plan_memory(trainer, validation, budget)
follow(plan, trainer)
loss = [trainer.step(rows).loss for rows in trainer.batches(0)[:3]]
if validation is not None:
    trainer.evaluate(validation)
print(json.dumps({"peak": peak_memory(), "plan": plan.to_dict(), "loss": loss}))
"""


@pytest.fixture(scope="module")
def cut_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers, the last two of which go on from a prefix."""

    def build(net: Net, x: str) -> str:
        for layer in range(8):
            x = net("Tanh", net.linear(x, f"layers.{layer}.dense", WIDTH, WIDTH))
        return x

    model = perceptron(build=build, width=WIDTH, output=8)
    options: dict[str, Any] = {"target_modules": ("dense",), "train_last": (2,)}
    return to_bundle(model, tmp_path_factory.mktemp("cut"), task="regression", pooling="pooler", **options).path


def measured_after(bundle: Path, budget: int, samples: int, held_out: int, **options: Any) -> dict[str, Any]:
    given = map(str, (BATCH, WIDTH, budget, samples, held_out))
    process = start_python("-c", AFTER_PREFIX, bundle, *given, json.dumps(options))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


@LINUX
@pytest.mark.parametrize(
    ("held_out", "options"),
    [
        (0, {}),
        (9000, {}),
        (0, {"cache": None}),
        (9000, {"cache_limit": 8_000_000}),
        (0, {"cache_dtype": "float16"}),
    ],
    ids=["memory", "validation", "none", "bounded", "float16"],
)
def test_the_peak_after_a_prefix_is_predicted_within_a_tenth(cut_bundle: Path, held_out: int, options: dict[str, Any]):
    free = measured_after(cut_bundle, 10**12, 16_000, held_out, **options)
    assert 0.9 < free["peak"] / free["plan"]["predicted"] < 1.1
    kept = {None: 0, "float16": 16_000 * WIDTH * 2}.get(options.get("cache_dtype", options.get("cache", "")))
    if kept is not None:
        assert free["plan"]["kept"] == kept


@LINUX
def test_a_budget_after_a_prefix_is_kept(cut_bundle: Path):
    free = measured_after(cut_bundle, 10**12, 6000, 0)
    budget = int(0.85 * free["peak"])
    tight = measured_after(cut_bundle, budget, 6000, 0)
    assert tight["plan"]["part_size"] < BATCH or not tight["plan"]["prepacked"]
    assert tight["peak"] < budget * 1.1  # as near as the prediction is
    assert 0.9 < tight["peak"] / tight["plan"]["predicted"] < 1.1
    np.testing.assert_allclose(tight["loss"], free["loss"], rtol=1e-5)


@LINUX
def test_planning_after_a_prefix_keeps_nothing_yet(base: Any, tmp_path: Path):
    path = write_bundle(base, "sequence-classification", tmp_path / "b.edgelora", train_last=(1,), ram=PLENTY)
    model = Model.open(path, tmp_path / "store")
    config = TrainingConfig(max_steps=2, batch_size=8, train_last=1)
    assert default_budget(model.bundle.manifest, config) == PLENTY
    plain = train(model, "plain", SAMPLES, config=config, ram=0)
    planned = train(model, "planned", SAMPLES, config=config)
    assert planned.memory is not None
    assert planned.memory.kept > 0
    np.testing.assert_allclose(planned.history[0]["train_loss"], plain.history[0]["train_loss"], rtol=1e-4)
    older = replace(model.bundle.manifest, memory={})
    assert default_budget(older, config) is None


@LINUX
@pytest.mark.parametrize("task", ["sentence-embedding", "feature-extraction"])
def test_training_is_foretold_for_every_kind_of_loss(bundle_of: Callable[[str], Path], task: str):
    told = forecast(bundle_of(task), 10**10, 4, 8)
    assert told.part_size == 4
    assert told.results > 0


@LINUX
def test_a_bundle_has_a_budget_that_training_keeps_to(base: Any, tmp_path: Path):
    told: list[MemoryPlan] = []
    path = write_bundle(base, "sequence-classification", tmp_path / "b.edgelora", planned=told.append, ram=PLENTY)
    assert [plan.budget for plan in told] == [PLENTY]
    model = Model.open(path, tmp_path / "store")
    assert model.bundle.manifest.budget == Budget(PLENTY, 32, MAX_LENGTH)
    assert Manifest.from_json(model.bundle.manifest.to_json(), "here").budget == Budget(PLENTY, 32, MAX_LENGTH)
    planned: list[MemoryPlan] = []
    config = TrainingConfig(max_steps=2, batch_size=8)
    report = train(model, "user", SAMPLES, config=config, planned=planned.append)
    assert [report.memory] == planned
    assert planned[0].describe().startswith("the bundle's --ram 100000 MB: 8 samples at a time")
    assert train(model, "other", SAMPLES, config=config, ram=0).memory is None
    model.bundle.manifest = replace(model.bundle.manifest, budget=Budget(1_000_000, 32, 128))
    with pytest.raises(ConfigError, match=r"^the bundle's --ram 1 MB is too little"):
        train(model, "third", SAMPLES, config=config)


@LINUX
def test_a_bundle_that_cannot_be_trained_within_the_budget_is_not_written(base: Any, tmp_path: Path):
    with pytest.raises(ConversionError, match=r"steps of 32 samples, length 16: .*smallest peak possible is \d+ MB"):
        write_bundle(base, "sequence-classification", tmp_path / "b.edgelora", ram=1_000_000)
    assert not list(tmp_path.iterdir())


def trainer_of(model: Model, batch_size: int = 8) -> Trainer:
    config = TrainingConfig(batch_size=batch_size)
    labels = tuple(dict.fromkeys(s.label for s in SAMPLES))
    adapter = new_adapter(
        model.bundle.manifest, LoraConfig(r=2, lora_alpha=2), labels, outputs=None, rng=np.random.default_rng(0)
    )
    return Trainer(model.bundle, adapter, objective_for(model, SAMPLES, labels, config), config)


@LINUX
def test_smaller_parts_and_no_packing_hold_less(open_model):
    plans = list(candidate_plans(trainer_of(open_model()), None, 1))
    assert {plan.part_size for plan in plans} == {8, 4, 2, 1}
    assert {plan.prepacked for plan in plans} == {True, False}
    results = {plan.part_size: plan.results for plan in plans}
    assert results[1] < results[2] < results[4] < results[8]
    assert all((plan.packed > 0) == plan.prepacked for plan in plans)
    assert all(plan.predicted == plan.resident + plan.packed + plan.results + plan.pages for plan in plans)


@LINUX
def test_planning_runs_the_longest_sample_where_that_fits(open_model, monkeypatch: pytest.MonkeyPatch):
    """What the process holds beside results in use grows with them: of the shortest sample it is too little."""
    trainer, ran = trainer_of(open_model()), list[int]()
    lengths, run_once = trainer.objective.lengths(), trainer.run_once

    def noted(rows: Any) -> None:
        ran.extend(lengths[rows])
        run_once(rows)

    monkeypatch.setattr(trainer, "run_once", noted)
    assert min(lengths) < max(lengths)
    plan_memory(trainer, None, PLENTY)
    assert ran == [min(lengths), max(lengths)]
    ran.clear()
    with pytest.raises(ConfigError, match="is too little"):
        plan_memory(trainer, None, 1_000_000)
    assert ran == [min(lengths)]


@pytest.fixture(scope="module")
def virtual_bundle(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("virtual") / "b.edgelora"
    return write_bundle(base, "sequence-classification", path, methods=("prompt", "prefix"))


@LINUX
@pytest.mark.parametrize(("config", "most"), [(PromptTuningConfig, 1.1), (PrefixTuningConfig, 2.2)])
@pytest.mark.parametrize("count", [2, 45])
def test_virtual_tokens_are_counted(
    virtual_bundle: Path, config: type[PromptTuningConfig | PrefixTuningConfig], most: float, count: int
):
    """Of a prompt nearly exactly, of a prefix no less than what ONNX Runtime's profile says of this very run."""
    model = Model.open(virtual_bundle, virtual_bundle.with_name("store"))
    bundle, labels = model.bundle, tuple(dict.fromkeys(s.label for s in SAMPLES))
    adapter = new_adapter(bundle.manifest, config(num_virtual_tokens=count), labels)
    objective = objective_for(model, SAMPLES, labels, TrainingConfig())
    trainer = Trainer(bundle, adapter, objective, TrainingConfig(batch_size=8))
    plan = max(candidate_plans(trainer, None, 1), key=lambda plan: plan.part_size)
    longest = objective.inputs(np.argsort(objective.lengths(), kind="stable")[-8:])
    graph = ir.load(bundle.path / plan.file)
    sizes = {name: count for name in memory_table._dimensions(graph) if name.endswith("virtual_tokens")}
    sizes |= dict(zip(map(str, bundle.manifest.inputs[0].shape), longest["input_ids"].shape, strict=True))
    (run,) = memory_table._profile(bundle.path / plan.file, graph, [sizes], prepack=True)
    held = max(run.in_use.values()) * ARENA + sum(x.nbytes for x in longest.values())
    assert 0.98 < plan.results / held < most


@LINUX
def test_too_small_a_budget_is_refused_before_the_store_is_touched(open_model):
    model = open_model()
    with pytest.raises(ConfigError, match=r"too little: the smallest peak possible is \d+ MB"):
        train(model, "user", SAMPLES, config=TrainingConfig(max_steps=1), ram=1_000_000)
    assert not model.store.exists("user")
    assert not model.store.state_path("user").exists()


@LINUX
def test_a_planned_run_is_the_plain_one_and_leaves_the_settings(open_model):
    model, told = open_model(store="a"), []
    config = TrainingConfig(num_train_epochs=1, batch_size=8)
    plain = train(model, "user", SAMPLES, config=config)
    settings = model.bundle.settings
    other = open_model(store="b")
    planned = train(other, "user", SAMPLES, config=config, ram=10**10, planned=told.append)
    assert told == [planned.memory]
    assert other.bundle.settings == settings
    np.testing.assert_allclose(planned.history[0]["train_loss"], plain.history[0]["train_loss"], rtol=1e-4)
    assert planned.to_dict()["memory"]["predicted"] == told[0].predicted


@LINUX
def test_a_run_that_is_continued_keeps_its_layout(open_model):
    trainer = trainer_of(open_model())
    for plan in candidate_plans(trainer, None, 10**10):
        assert plan_memory(trainer, None, 10**10, plan.layout).layout == plan.layout


class Stopped(Exception):
    """Stands for the power that goes."""


@LINUX
def test_a_run_that_is_refused_leaves_the_layout_of_another(open_model):
    model, config = open_model(), TrainingConfig(num_train_epochs=1, batch_size=8, save_steps=1)

    def stop(step, progress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(model, "user", SAMPLES, config=config, ram=10**10, callback=stop)
    layout = model.store.state_path("user") / LAYOUT_FILE
    kept, settings = layout.read_bytes(), model.bundle.settings
    with pytest.raises(EdgeLoraError, match="unfinished training with other data"):
        train(model, "user", SAMPLES[1:], config=config, ram=10**10)
    assert layout.read_bytes() == kept
    assert model.bundle.settings == settings
    assert train(model, "user", SAMPLES, config=config, ram=10**10).resumed_at > 0


def test_a_bundle_without_a_table_says_what_to_do(open_model):
    model = open_model()
    model.bundle.manifest = replace(model.bundle.manifest, memory={})
    with pytest.raises(ConfigError, match=r"convert the model again, or set micro_batch_size and low_memory"):
        train(model, "user", SAMPLES, ram=10**9)


def test_the_table_survives_the_manifest(bundle: Path):
    manifest = Bundle.open(bundle).manifest
    assert set(manifest.memory) == {manifest.forward, *(file for graph in manifest.training for file in graph.files)}
    assert Manifest.from_json(manifest.to_json(), "here") == manifest
    old = json.loads(manifest.to_json())
    del old["memory"]
    assert Manifest.from_json(json.dumps(old), "here").memory == {}


def test_the_largest_polynomial_counts(bundle: Path):
    table = Bundle.open(bundle).manifest.memory["forward.onnx"]
    one, two = table.peak({"batch": 1, "sequence": 8}), table.peak({"batch": 2, "sequence": 8})
    assert 0 < one < two <= 2 * one
    assert replace(table, peaks=()).peak({}) == 0
    assert isinstance(table, MemoryTable)


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256_000_000), ("1.5GiB", 3 << 29), ("268435456", 1 << 28), ("64 kb", 64_000), ("2g", 2_000_000_000)],
)
def test_sizes_are_read(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "256iB", "12 apples", "0", "0.0001kB", "nan"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ConfigError, match="256MB"):
        parse_size(text)


def test_what_was_mapped_before_is_not_counted_as_added():
    assert added([], [(0, 4)]) == [(0, 4)]
    assert added([(0, 4)], [(0, 8)]) == [(4, 8)]
    assert added([(4, 8)], [(0, 12), (20, 24)]) == [(0, 4), (8, 12), (20, 24)]
    assert added([(0, 4), (8, 12)], [(0, 12)]) == [(4, 8)]
    assert added([(0, 12)], [(2, 6)]) == []
