"""Which models get a graph for mixed batches, and that it computes what the inference graph does for each row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from edgelora.adapter import absent_adapter
from edgelora.check import check
from edgelora.cli.main import main
from tests.convert.bundles import relative, to_bundle
from tests.convert.networks import FLOAT, Net
from tests.convert.test_check import edit, insert_after


def linear(shape: Any, flatten: bool = False):
    net = Net(21)
    x = net("Reshape", "x", net.const([-1, 6], np.int64)) if flatten else "x"
    net.output(net("Tanh", net("MatMul", x, net.weight("layer.weight", 6, 5))), "out")
    return net.model([("x", FLOAT, shape)], [("out", FLOAT, None)], check=False)


@pytest.mark.parametrize(
    "shape", [["batch", 6], ["batch", "sequence", 6], ["batch", 3, "sequence", 6], ["batch", 2, 3, "sequence", 6]]
)
def test_rows_have_their_own(shape, tmp_path):
    bundle = to_bundle(linear(shape), tmp_path)
    assert bundle.manifest.mixed == "mixed.onnx"
    rng = np.random.default_rng(0)
    x = rng.standard_normal([d if isinstance(d, int) else 4 for d in shape]).astype(np.float32)
    stacked = {n: rng.standard_normal((3, *(d or 2 for d in a.shape))).astype(np.float32)
               for n, a in absent_adapter(bundle.manifest).items()}  # fmt: skip
    index = np.array([2, 0, 1, 2])
    got = bundle.graph("mixed.onnx").run({"x": x, **stacked, "adapter_index": index})["out"]
    for row, k in enumerate(index):
        alone = bundle.forward.run({"x": x[row : row + 1], **{n: a[k] for n, a in stacked.items()}})["out"]
        assert relative(got[row : row + 1], alone) < 1e-5


def test_rows_that_are_one_with_positions_have_none(tmp_path):
    assert to_bundle(linear(["batch", "sequence", 6], flatten=True), tmp_path).manifest.mixed is None


def test_rows_that_are_the_positions_of_one_have_none(tmp_path):
    net = Net(21)
    x = net("Reshape", "x", net.const([1, -1, 6], np.int64))
    y = net("Tanh", net("MatMul", x, net.weight("layer.weight", 6, 5)))
    net.output(net("Reshape", y, net.const([-1, 5], np.int64)), "out")
    model = net.model([("x", FLOAT, ["batch", 6])], [("out", FLOAT, None)], check=False)
    assert to_bundle(model, tmp_path).manifest.mixed is None


def test_a_convolution_has_none(tmp_path):
    net = Net(21)
    net.output(net("Conv", "x", net.weight("layer.weight", 4, 3, 3, 3)), "out")
    proto = net.model([("x", FLOAT, ["batch", 3, 8, 8])], [("out", FLOAT, None)], check=False)
    bundle = to_bundle(proto, tmp_path, target_modules="layer")
    assert bundle.manifest.points and bundle.manifest.mixed is None
    assert not (bundle.path / "mixed.onnx").exists()


@pytest.mark.parametrize("task", ["feature-extraction", "sequence-classification", "token-classification"])
def test_check_holds_it_against_the_inference_graph(task, tmp_path, capsys):
    """An error of a thousandth, and one that only rows of another adapter would see."""
    path = to_bundle(linear(["batch", "sequence", 6]), tmp_path, task=task).path

    def checked():
        status = main(["check", str(path), "--json"])
        verdict = json.loads(capsys.readouterr().out)
        assert json.loads((path / "bundle.json").read_text())["verification"] == verdict
        (mixed,) = [graph for graph in verdict["graphs"] if graph["file"] == "mixed.onnx"]
        assert verdict["passed"] is mixed["passed"] is (status == 0)
        return mixed

    assert checked()["error"] < 1e-5
    whole = (path / "mixed.onnx").read_bytes()
    output = "out" if task == "feature-extraction" else "logits"
    edit(path, "mixed.onnx", insert_after(output, "Mul", 1.001))
    assert not checked()["passed"]
    (path / "mixed.onnx").write_bytes(whole)

    def all_of_the_first(graph):
        for node in graph.node:
            if node.op_type == "Gather" and node.input[0] == "layer.lora_B":
                node.input[1] = "first"
        graph.initializer.append(numpy_helper.from_array(np.ones(3, np.int64), "first"))

    edit(path, "mixed.onnx", all_of_the_first)
    found = checked()
    assert not found["passed"] and found["where"].endswith(("rank 4", "rank 2"))


def test_check_of_a_number_for_each_row(tmp_path):
    net = Net(21)
    net.output(net.squeeze(net("MatMul", "x", net.weight("layer.weight", 6, 1)), [1]), "out")
    proto = net.model([("x", FLOAT, ["batch", 6])], [("out", FLOAT, None)], check=False)
    verdict = check(to_bundle(proto, tmp_path))
    assert [graph.where.split(" with")[0] for graph in verdict.graphs if graph.file == "mixed.onnx"] == ["out"]
    assert verdict.passed
