"""Operators without a rule that ONNX defines by a function: written out, they compute the same, and train."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from edgelora_tools.gradients import NON_DIFFERENTIABLE, RULES
from edgelora_tools.passes.expand import expand
from edgelora_tools.passes.function_bodies import has_body
from edgelora_tools.passes.rotary_tables import has_shared_tables
from edgelora_tools.runner import open_session
from tests import families
from tests.convert.bundles import assert_checked, assert_same_outputs, base_outputs, relative, to_bundle
from tests.convert.networks import FLOAT, INT64, Net, save
from tests.expansions.cases import Case
from tests.expansions.test_expansions import model_of
from tests.expansions.test_optimized_transformers import Hidden

_LABELS = np.array([[1, 0, 2, 3], [3, 1, 1, 0]])
_WEIGHTS = np.array([0.5, 1.0, 2.0, 0.1], np.float32)
CASES = [
    Case("MeanVarianceNormalization", [(2, 3, 4, 5)], domain=""),
    Case("MeanVarianceNormalization", [(2, 3, 4)], {"axes": [0, 2]}, domain=""),
    Case("AffineGrid", [(2, 2, 3), np.array([2, 3, 4, 5])], {"align_corners": 1}, domain=""),
    Case("AffineGrid", [(2, 2, 3), np.array([2, 3, 4, 5])], domain=""),
    Case("AffineGrid", [(2, 3, 4), np.array([2, 3, 4, 5, 3])], domain=""),
    Case("CenterCropPad", [(4, 5, 6), np.array([6, 3, 6])], domain=""),
    Case("CenterCropPad", [(4, 5, 6), np.array([3, 8])], {"axes": [-1, 0]}, domain=""),
    *(
        Case("NegativeLogLikelihoodLoss", [(2, 4, 4), _LABELS, *weights], {"reduction": reduction} | ignored, domain="")
        for reduction in ("mean", "sum", "none")
        for weights in ([], [_WEIGHTS])
        for ignored in ({}, {"ignore_index": 1})
    ),
    *(
        Case("SoftmaxCrossEntropyLoss", [(2, 4, 4), _LABELS, *weights], {"reduction": reduction} | ignored, domain="",
             outputs=(0, 1))
        for reduction in ("mean", "sum", "none")
        for weights in ([], [_WEIGHTS])
        for ignored in ({}, {"ignore_index": 1})
    ),
    Case("SoftmaxCrossEntropyLoss", [(4, 4), _LABELS[0]], domain=""),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_body_matches_the_kernel(case, monkeypatch):
    monkeypatch.delitem(RULES, ("", case.op), raising=False)  # a rule of its own goes before its body
    rng = np.random.default_rng(0)
    arrays = [x if isinstance(x, np.ndarray) else rng.standard_normal(x).astype(np.float32) for x in case.inputs]
    if case.op == "NegativeLogLikelihoodLoss":
        arrays[0] = -np.abs(arrays[0])
    proto = model_of(case, arrays, dynamic=True)
    feeds = {f"x{i}": x for i, x in enumerate(arrays)}
    model = ir.from_proto(proto)
    with open_session(model, optimize=False) as session:
        names = [y.name for y in session.get_outputs()]
        wanted = session.run(names, feeds)
    expand(model)
    assert not any(node.op_type == case.op for node in model.graph)
    assert all(key in RULES or key in NON_DIFFERENTIABLE for key in {("", n.op_type) for n in model.graph})
    assert not model.functions
    with open_session(model, optimize=False) as session:
        got = session.run(names, feeds)
    for y, exact in zip(map(np.asarray, got), map(np.asarray, wanted), strict=True):
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


def test_every_such_operator_has_a_case():
    found = set()
    for opset in (21, 23):
        graph = ir.Graph([], [], nodes=[], opset_imports={"": opset})
        for name in {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}:
            node = ir.node(name, [])
            graph.append(node)
            if has_body(node) and ("", name) not in RULES and ("", name) not in NON_DIFFERENTIABLE:
                found.add(name)
    assert found <= {case.op for case in CASES}


@pytest.mark.parametrize("opset", [13, 18, 23])
def test_a_model_with_them_trains(opset, tmp_path):
    net = Net(opset)
    x = net.linear("x", "first", 8, 6)
    if opset >= 18:
        x = net("CenterCropPad", x, net.const([4], np.int64), axes=[-1])
        x = net.linear(net("Tanh", x), "second", 4, 6)
    x = net("MeanVarianceNormalization", x, axes=[0, 1])
    scores = net("Reshape", x, net.const([-1, 3, 2], np.int64))
    lost = net("SoftmaxCrossEntropyLoss", scores, "labels", reduction="none")
    net.output(net.linear(lost, "last", 2, 5), "y")
    inputs: list[Any] = [("x", FLOAT, ["batch", 8]), ("labels", INT64, ["batch", 2])]
    source = save(net.model(inputs, [("y", FLOAT, ["batch", 5])]), tmp_path)
    bundle = to_bundle(source, tmp_path)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((5, 8)).astype(np.float32), "labels": rng.integers(0, 2, (5, 2))}
    assert_same_outputs(bundle, source, feeds)
    assert not bundle.manifest.lost
    assert bundle.manifest.mixed is None  # a normalization over the batch: no sample is alone in it
    assert_checked(bundle)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rotary_tables_of_a_batch_of_one(attention, tmp_path):
    """torch's exporter at opset 23: ONNX Runtime refuses the file itself for every other batch."""
    sample = families.sample("llama")
    names = list(sample)
    model: Any = copy.deepcopy(families.build("llama", attention))
    model.layers = model.layers[:1]
    path = tmp_path / "llama.onnx"
    sizes = tuple({0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")} for _ in names)
    inputs: Any = tuple(torch.from_numpy(x) for x in sample.values())
    program = torch.onnx.export(
        Hidden(model, names).eval(), inputs, dynamo=True, input_names=names, output_names=["y"], opset_version=23,
        dynamic_shapes=(sizes,), verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path))
    assert has_shared_tables(ir.load(path))
    bundle = to_bundle(path, tmp_path)
    for rows, length in ((1, 1), (3, 7), (2, 12)):
        feeds = families.sample("llama", rows, length)
        with torch.no_grad():
            wanted = Hidden(model, names)(*(torch.from_numpy(x) for x in feeds.values())).numpy()
        assert relative(base_outputs(bundle, feeds)["y"], wanted) < 2e-5
    assert not bundle.manifest.lost
    assert_checked(bundle)


def test_tables_of_every_row_stay(tmp_path):
    table = helper.make_tensor_value_info("t", FLOAT, ["batch", 3, 2])
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", 2, 3, 4])
    node = helper.make_node("RotaryEmbedding", ["x", "t", "t"], ["y"])
    graph = helper.make_graph([node], "g", [x, table], [helper.make_tensor_value_info("y", FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    assert not has_shared_tables(ir.from_proto(model))
