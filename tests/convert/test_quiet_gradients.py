"""The check of graphs whose adapters are small beside their inputs: B's gradients are long then, A's are short."""

from __future__ import annotations

import numpy as np
import pytest

from edgelora.bundle import Bundle
from edgelora.check import check
from tests.convert.bundles import to_bundle
from tests.convert.networks import FLOAT, Net
from tests.convert.test_check import edit, insert_after

WIDTH = 24


@pytest.fixture
def quiet(tmp_path) -> Bundle:
    """Its first weights are small and its last large, so that a small adapter changes its outputs by a tenth."""
    net, x = Net(18), "x"
    for layer, factor in enumerate((1e-3, 1.0, 1e3)):
        x = net.linear(net("Relu", x) if layer else x, f"layer.{layer}", WIDTH, WIDTH, bias=False)
        net.weights[f"layer.{layer}.weight"] *= np.float32(factor)
    net.output(x, "y")
    rows = ["batch", WIDTH]
    return to_bundle(net.model([("x", FLOAT, rows)], [("y", FLOAT, rows)]), tmp_path)


def test_right_gradients_pass(quiet):
    assert check(quiet).passed


@pytest.mark.parametrize("tensor", ["layer.0.lora_A", "layer.0.lora_B"])
@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.9, 1.1])
def test_wrong_gradients_of_a_and_b_are_seen_alike(tensor, factor, quiet):
    edit(quiet.path, "train-cotangent-dropout.onnx", insert_after(f"grad.{tensor}", "Mul", factor))
    (wrong,) = [graph for graph in check(Bundle.open(quiet.path)).graphs if not graph.passed]
    assert wrong.file == "train-cotangent-dropout.onnx" and wrong.where == f"grad.{tensor}"
    assert wrong.error == pytest.approx(abs(factor - 1), rel=1e-2)
