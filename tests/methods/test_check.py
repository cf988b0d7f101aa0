"""`check` proves the graphs of every method, and finds a wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgelora import Bundle, check
from edgelora.graph_checks import check_method
from edgelora.parity import parity_samples
from tests.convert.test_check import edit, insert_after
from tests.methods.world import World


def test_every_graph_of_every_method_is_checked(world: World):
    bundle = world.classifier.bundle
    verdict = check(bundle)
    assert verdict.passed, [g for g in verdict.graphs if not g.passed]
    checked = {graph.file for graph in verdict.graphs}
    for found in bundle.manifest.methods.values():
        assert {record.file for record in found.training} <= checked
    assert {"train-cotangent-ia3.onnx", "train-cross-entropy-dora.onnx"} <= checked


WRONG = {
    "ia3": ("train-cotangent-ia3.onnx", "grad.encoder.layer.1.attention.self.value.ia3_out"),
    "bitfit": ("train-cross-entropy-bitfit.onnx", "grad.encoder.layer.0.attention.self.value.beft_bias"),
    "bottleneck": ("train-cotangent-bottleneck.onnx", "grad.encoder.layer.0.attention.output.dense.adapter_up"),
    "layer-norm": ("train-cotangent-layer-norm.onnx", "grad.encoder.layer.0.output.LayerNorm.base_weight"),
    "full": ("train-cross-entropy-full.onnx", "grad.encoder.layer.1.attention.self.query.base_weight"),
    "lora-bias": ("train-cotangent-lora-bias.onnx", "grad.encoder.layer.1.intermediate.dense.base_bias"),
    "dora": ("train-cotangent-dora.onnx", "grad.encoder.layer.1.attention.self.query.dora_gain"),
    "prompt": ("train-cotangent-prompt.onnx", "grad.embeddings.word_embeddings.prompt"),
    "prefix": ("train-cotangent-prefix.onnx", "grad.encoder.layer.1.attention.self.prefix_value"),
}


@pytest.mark.parametrize("graphs", WRONG)
def test_a_wrong_gradient_is_found(world: World, tmp_path: Path, graphs: str):
    """One gradient is a tenth too large."""
    copy = Path(shutil.copytree(world.classifier.bundle.path, tmp_path / "copy.edgelora"))
    file, name = WRONG[graphs]
    edit(copy, file, insert_after(name, "Mul", 1.1))
    bundle = Bundle.open(copy)
    (record,) = [r for r in bundle.manifest.methods[graphs].training if r.file == file]
    verdict = check_method(bundle, record, graphs, parity_samples(bundle)[1][0], np.random.default_rng(0))
    assert not verdict.passed
    assert verdict.where in (name, name.removeprefix("grad.").rpartition(".")[0])


def test_a_set_that_is_not_the_base_when_off_is_found(world: World, tmp_path: Path):
    copy = Path(shutil.copytree(world.classifier.bundle.path, tmp_path / "copy.edgelora"))
    edit(copy, "forward-bitfit.onnx", insert_after("logits", "Mul", 1.01))
    bundle = Bundle.open(copy)
    (record,) = [r for r in bundle.manifest.methods["bitfit"].training if r.loss == "cotangent"]
    verdict = check_method(bundle, record, "bitfit", parity_samples(bundle)[1][0], np.random.default_rng(0))
    assert not verdict.passed
