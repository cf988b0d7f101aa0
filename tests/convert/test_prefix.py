"""A base cut before its last layers: prefix and suffix together are the whole, in outputs and in gradients."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.errors import ConversionError
from edgelora.manifest import InsertionPoint, Manifest, Prefix
from edgelora.session import Graph
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.passes.prefix import block_of, cut_before, last_blocks
from edgelora_tools.sources.torch_export import module_source
from tests import families
from tests.convert.bundles import relative, train_feeds

ROWS, LENGTH = 4, 9
EXACT = 2e-6


class Blocks(torch.nn.Module):
    """Four residual convolution blocks, in two stages of two, and a pooled output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.stage1 = torch.nn.ModuleList(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.down = torch.nn.Conv2d(8, 12, 2, stride=2)
        self.stage2 = torch.nn.ModuleList(torch.nn.Conv2d(12, 12, 3, padding=1) for _ in range(2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        for block in self.stage1:
            x = x + torch.relu(block(x))
        x = self.down(x)
        for block in self.stage2:
            x = x + torch.relu(block(x))
        return x.mean((2, 3))


class Recurrent(torch.nn.Module):
    """Three recurrent layers, whose states have the samples behind the steps, then a linear one of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.linear = torch.nn.LSTM(5, 4, 3, batch_first=True), torch.nn.Linear(4, 6)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        return self.linear(self.layers(mels)[0][:, -1])


def recurrent(folder: Path, last: tuple[int, ...], targets: tuple[str, ...]) -> Bundle:
    torch.manual_seed(0)
    source = module_source(Recurrent(), {"mels": torch.randn(2, 7, 5)}, "recurrent")
    options = ConvertOptions(pooling="pooler", target_modules=targets, train_last=last)
    convert(source, folder / "recurrent.edgelora", options)
    return Bundle.open(folder / "recurrent.edgelora")


def bundle_of(family: str, folder: Path, **options: Any) -> Bundle:
    torch.manual_seed(0)
    if family == "blocks":
        inputs: dict[str, np.ndarray] = {"image": np.zeros((2, 3, 8, 8), np.float32)}
        model: torch.nn.Module = Blocks().eval()
    else:
        inputs, model = families.sample(family, rows=3, length=7), families.build(family)
    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    source = module_source(model, tensors, family, "torchscript", outputs=["hidden"])
    convert(source, folder / f"{family}.edgelora", ConvertOptions(**options))
    return Bundle.open(folder / f"{family}.edgelora")


def inputs_of(bundle: Bundle, family: str) -> dict[str, np.ndarray]:
    if family == "blocks":
        return {"image": np.random.default_rng(3).standard_normal((ROWS, 3, 8, 8)).astype(np.float32)}
    names = {spec.name for spec in bundle.manifest.inputs}
    return {n: x for n, x in families.sample(family, ROWS, LENGTH, seed=3).items() if n in names}


def assert_whole(bundle: Bundle, prefix: Prefix, inputs: dict[str, np.ndarray]) -> None:
    """The outputs, and every gradient that the suffix gives, are those of the graphs that were not cut."""
    manifest = bundle.manifest
    feeds = train_feeds(bundle, inputs)
    rng = np.random.default_rng(1)
    for point in manifest.points:
        for name, shape in ((point.input_a, point.shape_a(3)), (point.input_b, point.shape_b(3))):
            feeds[name] = (rng.standard_normal(shape) * 0.3).astype(np.float32)
    for point in manifest.points:
        if point.id not in prefix.points:
            feeds |= {point.input_a: np.zeros(point.shape_a(0), "f4"), point.input_b: np.zeros(point.shape_b(0), "f4")}
    kept = bundle.graph(prefix.file).run(inputs)
    assert [spec.name for spec in prefix.kept] == list(kept)
    for spec in prefix.kept:
        assert len(kept[spec.name]) == ROWS and spec.shape[0] == manifest.inputs[0].shape[0]
    whole = bundle.forward.run(feeds)
    cut = bundle.graph(prefix.forward).run({**feeds, **kept})
    for name, y in whole.items():
        assert relative(cut[name], y) < EXACT, name
        feeds[f"cotangent.{name}"] = rng.standard_normal(y.shape).astype(np.float32)
    feeds |= {"labels": np.arange(ROWS) % 3, "loss_weight": np.full(ROWS, 0.25, np.float32)}
    assert {(g.loss, g.dropout) for g in prefix.training} == {(g.loss, g.dropout) for g in manifest.training}
    for record in prefix.training:
        if record.dropout:
            continue
        assert set(record.points) == set(prefix.points)
        theirs = bundle.graph(bundle.training(record.loss, False).file).run(feeds)
        ours = bundle.graph(record.file).run({**feeds, **kept})
        assert len([n for n in ours if n.endswith(".lora_A")]) == len(prefix.points)
        for name, gradient in ours.items():
            assert np.abs(gradient).max() > 0, name
            assert relative(gradient, theirs[name]) < 10 * EXACT, name


FAMILIES = [*((family, 1) for family in ("bert", "distilbert", "roberta", "gpt2", "llama", "vit")), ("bert", 2)]


@pytest.mark.parametrize(("family", "last"), FAMILIES)
def test_prefix_and_suffix_are_the_whole(family: str, last: int, tmp_path: Path):
    bundle = bundle_of(family, tmp_path, train_last=(last,))
    (prefix,) = bundle.manifest.prefixes
    assert prefix.name == f"last-{last}"
    assert len(prefix.kept) == 1, "the hidden states alone are kept; masks and tables are computed again"
    assert prefix.kept[0].shape[-1] == 32
    assert_whole(bundle, prefix, inputs_of(bundle, family))


@pytest.mark.parametrize("targets", ["all-linear", ("output.dense",), ("attention.self.key",)])
def test_the_cut_is_small_whatever_the_targets(targets: Any, tmp_path: Path):
    bundle = bundle_of("bert", tmp_path, target_modules=targets, train_last=(1,))
    (prefix,) = bundle.manifest.prefixes
    assert [spec.shape[-1] for spec in prefix.kept] == [32]
    assert_whole(bundle, prefix, inputs_of(bundle, "bert"))


@pytest.mark.parametrize("task", ["token-classification", "feature-extraction", "regression", "sentence-embedding"])
def test_every_task_has_its_losses_after_a_prefix(task: str, tmp_path: Path):
    bundle = bundle_of("bert", tmp_path, task=task, train_last=(1,))
    (prefix,) = bundle.manifest.prefixes
    assert {g.loss for g in prefix.training} == {g.loss for g in bundle.manifest.training}
    kept = bundle.graph(prefix.file).run(inputs_of(bundle, "bert"))
    feeds = train_feeds(bundle, inputs_of(bundle, "bert"))
    zeroed = {p.input_b: feeds[p.input_b] * 0 for p in bundle.manifest.points if p.id not in prefix.points}
    whole = bundle.forward.run(feeds | zeroed)
    cut = bundle.graph(prefix.forward).run({**feeds, **kept})
    for name, y in whole.items():
        assert relative(cut[name], y) < EXACT


@pytest.mark.parametrize(("last", "shape"), [(1, (12, 4, 4)), (2, (12, 4, 4)), (3, (8, 8, 8)), (4, (8, 8, 8))])
def test_convolution_blocks(last: int, shape: tuple[int, ...], tmp_path: Path):
    bundle = bundle_of("blocks", tmp_path, pooling="pooler", target_modules=r"stage.*", train_last=(last,))
    (prefix,) = bundle.manifest.prefixes
    assert [spec.shape[1:] for spec in prefix.kept] == [shape]
    assert len(prefix.points) == last
    assert_whole(bundle, prefix, inputs_of(bundle, "blocks"))


def test_the_prefix_is_what_it_says(tmp_path: Path):
    """Neither part holds the other's weights, and no adapter enters the prefix."""
    bundle = bundle_of("bert", tmp_path, train_last=(1,))
    (prefix,) = bundle.manifest.prefixes

    def weights(file: str) -> set[str]:
        graph = ir.load(bundle.path / file).graph
        return {
            str(v.name)
            for v in graph.initializers.values()
            if v.const_value is not None and v.const_value.nbytes > 1023
        }

    early, late = weights(prefix.file), weights(prefix.training[0].file)
    assert any("embeddings" in name for name in early) and not any("embeddings" in name for name in late)
    assert any("layer.1." in name for name in late) or len(late) > 0
    assert not {name for name in early if "layer.1." in name}
    assert set(bundle.graph(prefix.file).inputs) <= {spec.name for spec in bundle.manifest.inputs}
    assert "input_ids" not in bundle.graph(prefix.forward).inputs


def test_check_compares_what_goes_on_from_a_prefix_with_the_whole(tmp_path: Path):
    bundle = bundle_of("bert", tmp_path, train_last=(1,))
    (prefix,) = bundle.manifest.prefixes
    verdict = check(bundle)
    checked = [g for g in verdict.graphs if "last-1" in g.file]
    assert {g.file for g in checked} == {prefix.forward, *(g.file for g in prefix.training)}
    assert verdict.passed and all(g.error < 1e-4 for g in checked)
    graph = bundle.graph(prefix.file)
    other = SimpleNamespace(run=lambda feeds: {n: 1.01 * x for n, x in graph.run(feeds).items()})
    bundle._graphs[prefix.file, bundle.settings] = cast("Graph", other)
    assert not check(bundle).passed


def test_a_manifest_with_prefixes_reads_back_and_one_without_reads(tmp_path: Path):
    import json

    manifest = bundle_of("bert", tmp_path, train_last=(1, 2)).manifest
    assert [p.name for p in manifest.prefixes] == ["last-1", "last-2"]
    text = manifest.to_json()
    assert Manifest.from_json(text, "x") == manifest
    body = json.loads(text)
    del body["prefixes"]
    assert Manifest.from_json(json.dumps(body), "x").prefixes == ()


def test_refusals_are_by_name(tmp_path: Path):
    with pytest.raises(ConversionError, match=r"train_last 3.*2 layers; choose 1 to 2"):
        bundle_of("bert", tmp_path, train_last=(3,))
    with pytest.raises(ConversionError, match="choose 1 to"):
        bundle_of("bert", tmp_path, train_last=(0,))


LAYERS = ("layers", "layers_2", "layers_3")


@pytest.mark.parametrize(("last", "points"), [(1, LAYERS[2:]), (2, LAYERS[1:])])
def test_recurrent_layers_have_no_numbers_and_go_by_the_order_of_the_graph(
    last: int, points: tuple[str, ...], tmp_path: Path
):
    bundle = recurrent(tmp_path, (last,), LAYERS)
    (prefix,) = bundle.manifest.prefixes
    assert prefix.points == points
    assert [spec.shape[1:] for spec in prefix.kept] == [(7, 4)], "the states of the layer before, by the sample"
    mels = np.random.default_rng(3).standard_normal((ROWS, 7, 5)).astype(np.float32)
    assert_whole(bundle, prefix, {"mels": mels})


def test_a_linear_layer_behind_recurrent_ones_is_the_last(tmp_path: Path):
    (prefix,) = recurrent(tmp_path, (1,), (*LAYERS, "linear")).manifest.prefixes
    assert prefix.points == ("linear",) and [spec.shape[1:] for spec in prefix.kept] == [(4,)]


def test_blocks_are_told_by_their_path():
    assert block_of("encoder.layer.3.attention.self.query") == "encoder.layer.3"
    assert block_of("layer2.0.conv1") == "layer2.0"
    assert block_of("features.18.0") == "features.18"
    assert block_of("pooler.dense") is None and block_of("conv2") is None
    points = [InsertionPoint(i, "Conv", 1, 1) for i in ("layer1.0.a", "layer1.1.a", "layer2.0.a", "fc", "layer2.0.b")]
    assert [p.id for p in last_blocks(points, 2)] == ["layer1.1.a", "layer2.0.a", "layer2.0.b"]
    unnumbered = [InsertionPoint(i, "Conv", 1, 1) for i in ("stem", "down", "fc")]
    assert [p.id for p in last_blocks(unnumbered, 2)] == ["down", "fc"], "each is a layer"


def test_a_fixed_batch_is_refused():
    x = ir.Input("x", shape=ir.Shape([2, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    model = ir.Model(ir.Graph([x], [x], nodes=[], opset_imports={"": 21}), ir_version=10)
    with pytest.raises(ConversionError, match="no dynamic batch"):
        cut_before(model, [InsertionPoint("a.0.b", "MatMul", 4, 4)], {})
