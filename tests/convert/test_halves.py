"""A training graph in two: what the host's loss stands between computes the same, and nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.config import LoraConfig
from edgelora.graph_checks import check_halves
from edgelora.manifest import LORA_GRAPHS, Halves, Manifest, TrainingGraph
from edgelora.objectives import OwnLoss
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import module_source
from tests.convert import networks
from tests.convert.bundles import to_bundle

PRODUCTS = ("Conv", "MatMul", "Gemm", "ConvTranspose", "FusedMatMul")
SAMPLES = 6


class Residual(nn.Module):
    """Convolutions of one pixel and more, a norm, a skip and two maps, one made of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 24, 1)
        self.deep = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.narrow = nn.Conv2d(24, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.norm(self.first(image)))
        y = nn.functional.relu6(self.wide(x))
        fine = x + self.narrow(torch.relu(self.deep(y)))
        return {"fine": fine, "coarse": self.last(nn.functional.max_pool2d(fine, 2))}


def convolutional(folder: Path) -> Bundle:
    torch.manual_seed(0)
    source = module_source(
        Residual().eval(), {"image": torch.rand(2, 3, 24, 24)}, "residual", dynamic={"image": {0: "batch"}}
    )
    targets = ("first", "wide", "narrow", "last")
    convert(source, folder / "r.edgelora", ConvertOptions(task="feature-extraction", target_modules=targets))
    return Bundle.open(folder / "r.edgelora")


def transformer(folder: Path) -> Bundle:
    return to_bundle(networks.transformer(17, layers=2, pooler=False), folder, train_last=(1,), methods=("ia3",))


BUILDERS = {"convolutional": convolutional, "transformer": transformer}


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    made: dict[str, Bundle] = {}

    def bundle(kind: str) -> Bundle:
        if kind not in made:
            made[kind] = BUILDERS[kind](tmp_path_factory.mktemp(kind))
        return made[kind]

    return bundle


def halves_of(bundle: Bundle) -> tuple[TrainingGraph, Halves]:
    record = bundle.training("cotangent", dropout=False)
    assert record.halves is not None
    return record, record.halves


def products(bundle: Bundle, file: str) -> set[str]:
    """What the products of a graph are called."""
    nodes = onnx.load(bundle.path / file, load_external_data=False).graph.node
    return {node.output[0] for node in nodes if node.op_type in PRODUCTS}


@pytest.mark.parametrize("kind", BUILDERS)
def test_no_product_is_computed_twice(bundle_of: Callable[[str], Bundle], kind: str) -> None:
    bundle = bundle_of(kind)
    record, halves = halves_of(bundle)
    forward, backward = products(bundle, halves.forward), products(bundle, halves.backward)
    assert forward and backward and forward.isdisjoint(backward)
    assert products(bundle, record.file) <= forward | backward


@pytest.mark.parametrize("kind", BUILDERS)
def test_check_compares_the_halves(bundle_of: Callable[[str], Bundle], kind: str) -> None:
    bundle = bundle_of(kind)
    record, halves = halves_of(bundle)
    verdict = check(bundle)
    assert verdict.passed, verdict
    sets = [bundle.manifest, *bundle.manifest.prefixes, *bundle.manifest.methods.values()]
    files = {one.halves.backward for found in sets for one in found.training if one.halves is not None}
    assert len(files) == len(sets) and files <= {graph.file for graph in verdict.graphs}
    rng = np.random.default_rng(0)
    inputs = inputs_of(bundle.manifest, 4, rng)
    assert check_halves(bundle, record, halves, inputs, rng, LORA_GRAPHS).error < 1e-5
    model = onnx.load(bundle.path / halves.backward, load_external_data=False)
    lost = model.graph.output.pop().name
    (bundle.path / "less.onnx").write_bytes(model.SerializeToString())
    less = check_halves(bundle, record, replace(halves, backward="less.onnx"), inputs, rng, LORA_GRAPHS)
    assert not less.passed and less.where == lost
    wrong = replace(halves, forward=bundle.manifest.forward, kept=())
    with pytest.raises(Exception, match="cannot run it"):
        check_halves(bundle, record, wrong, inputs, rng, LORA_GRAPHS)


def inputs_of(manifest: Manifest, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for spec in manifest.inputs:
        shape = [rows, *(7 if isinstance(d, str) else d for d in spec.shape[1:])]
        reals = spec.dtype == "float32"
        made[spec.name] = rng.standard_normal(shape).astype(np.float32) if reals else np.ones(shape, np.int64)
    return made


class Given:
    """Inputs that are there."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return SAMPLES

    def lengths(self) -> np.ndarray:
        return np.ones(SAMPLES, np.int64)

    def feeds(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: x[rows] for name, x in self.arrays.items()}


class Squares(OwnLoss):
    separable = True


def squares(outputs: Any, rows: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Σ (y − 1)² / 2 of every output."""
    gaps = {name: y - 1.0 for name, y in outputs.items()}
    return sum(float((gap**2).sum()) / 2 for gap in gaps.values()), gaps


@pytest.mark.parametrize(("kind", "last"), [("convolutional", None), ("transformer", None), ("transformer", 1)])
def test_training_is_the_same_without_a_second_forward_pass(
    bundle_of: Callable[[str], Bundle], kind: str, last: int | None
) -> None:
    given = Bundle.open(bundle_of(kind).path)
    whole = Bundle(given.path, without_halves(given.manifest), given.settings)
    made: list[tuple[list[float], dict[str, np.ndarray]]] = []
    for bundle in (given, whole):
        rng = np.random.default_rng(3)
        manifest = bundle.manifest
        points = manifest.prefixes[0].points if last else None
        adapter = new_adapter(manifest, LoraConfig(r=3, lora_alpha=6, target_modules=points), rng=rng)
        objective = Squares(Given(inputs_of(manifest, SAMPLES, rng)), squares)
        config = TrainingConfig(batch_size=4, learning_rate=1e-2, optim="sgd", train_last=last)
        trainer = Trainer(bundle, adapter, objective, config)
        losses = [trainer.step(np.arange(SAMPLES)[start : start + 4]).loss for start in (0, 2, 0, 2)]
        made.append((losses, dict(trainer.current().tensors)))
        trainer.close()
    (losses, ours), (wanted, theirs) = made
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert losses[2] < losses[0]
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-5 * max(np.abs(tensor).max(), 1e-3), err_msg=name)
    run = {file for file, _ in given._graphs}  # pyright: ignore[reportPrivateUsage]
    assert sum("cotangent" in file for file in run) == 2 and given.manifest.forward not in run


def without_halves(manifest: Manifest) -> Manifest:
    """The manifest of a bundle from before there were halves."""

    def plain(records: tuple[TrainingGraph, ...]) -> tuple[TrainingGraph, ...]:
        return tuple(replace(record, halves=None) for record in records)

    prefixes = tuple(replace(prefix, training=plain(prefix.training)) for prefix in manifest.prefixes)
    return replace(manifest, training=plain(manifest.training), prefixes=prefixes)


def test_a_task_with_a_loss_in_its_graph_has_none(task_bundle: Any) -> None:
    manifest = task_bundle("sequence-classification").manifest
    assert not any(record.halves for record in manifest.training)
