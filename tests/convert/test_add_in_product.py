"""Adapters inside the last product: the same numbers, and fewer nodes where the base is a product on rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.graphs import forward_graph
from edgelora_tools.insertion import find_sites
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.normalize import normalize
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.add_in_product import add_in_product, biases
from edgelora_tools.reference import evaluator
from tests.convert.bundles import relative
from tests.convert.networks import FLOAT, Net
from tests.convert.test_passes import run

import onnx_ir as ir  # isort: skip

SHAPES = {2: ["batch", 6], 3: ["batch", "sequence", 6], 4: ["batch", "sequence", "more", 6]}


def network(rank: int, bias: bool, read_twice: bool, scalar: bool = False) -> onnx.ModelProto:
    """y = x·W (+ bias), which may have another reader before the adapter's Add."""
    net = Net(21)
    y = net("MatMul", "x", net.weight("layer.weight", 6, 5))
    if bias:
        y = net("Add", net.const(2.0 if scalar else np.arange(5)), y)
    z = net("Tanh", y)
    net.output(net("Add", z, net("MatMul", "x", "layer.weight")) if read_twice else z, "out")
    return net.model([("x", FLOAT, SHAPES[rank])], [("out", FLOAT, None)], check=False)


def graphs(proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> tuple[ir.Model, ir.Model]:
    """The inference graph with the pass, and without."""
    model = normalize(ir.from_proto(proto))
    measure_shapes(model)
    points = [site.point for site in find_sites(model)]
    options = ConvertOptions(task="feature-extraction")
    with_pass = forward_graph(model, points, options).model
    with monkeypatch.context() as patched:
        patched.setattr("edgelora_tools.graphs.add_in_product", lambda model, wanted: model)
        return with_pass, forward_graph(model, points, options).model


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(2, 4), bias=st.booleans(), twice=st.booleans(), scalar=st.booleans(),
    sizes=st.lists(st.integers(0, 4), min_size=3, max_size=3), r=st.integers(0, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_sum_is_the_same(rank, bias, twice, scalar, sizes, r, seed):
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fused, plain = graphs(network(rank, bias, twice, scalar), monkeypatch)
    x = rng.standard_normal((*sizes[: rank - 1], 6)).astype(np.float32)
    feeds = {str(v.name): rng.standard_normal([d if isinstance(d, int) else r for d in dims(v)]).astype(np.float32)
             for v in fused.graph.inputs if v.name != "x"}  # fmt: skip
    got, wanted = run(fused, {"x": x, **feeds})["out"], run(plain, {"x": x, **feeds})["out"]
    assert got.shape == wanted.shape == (*sizes[: rank - 1], 5)
    assert relative(got, wanted) < 1e-6


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_no_pass_over_the_output_is_left(rank, bias, monkeypatch):
    """One product for A, one for B that adds; the base's product and bias on rows, which costs no copy."""
    fused, plain = graphs(network(rank, bias, read_twice=False), monkeypatch)
    assert Counter(n.op_type for n in plain.graph)["MatMul"] == 3
    counts = Counter(n.op_type for n in fused.graph)
    assert (counts["MatMul"], counts["Gemm"], counts["Add"]) == (2, 1, int(bias))
    assert counts["Flatten"] == (rank > 2)


def test_a_convolutions_adapter_stays(monkeypatch):
    net = Net(21)
    net.output(net("Conv", "x", net.weight("layer.weight", 4, 3, 3, 3)), "out")
    fused, plain = graphs(
        net.model([("x", FLOAT, ["batch", 3, 8, 8])], [("out", FLOAT, None)], check=False), monkeypatch
    )
    assert [n.op_type for n in fused.graph] == [n.op_type for n in plain.graph]


def test_the_bundle_s_forward_graph_is_made_so(task_bundle):
    bundle = task_bundle("sequence-classification")
    graph = onnx.load(bundle.path / bundle.manifest.forward, load_external_data=False).graph
    sums = [n for n in graph.node if n.op_type == "Gemm" and n.input[1].endswith(".lora_B")]
    assert len(sums) == len(bundle.manifest.points)


def test_no_product_of_a_training_graph_copies_a_matrix(task_bundle):
    bundle = task_bundle("sequence-classification")
    for training in bundle.manifest.training:
        graph = onnx.load(bundle.path / training.file, load_external_data=False).graph
        fixed = {tensor.name for tensor in graph.initializer} | {x.name for x in graph.input}
        added = [n.input[2] for n in graph.node if n.op_type == "Gemm" and len(n.input) > 2]
        assert added and set(added) <= fixed


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("product", ["MatMul", "Gemm", "Gemm transposed"])
def test_a_bias_becomes_the_products_own(product, swapped):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="sum")
    builder = GraphBuilder(graph)
    op = builder.op
    a = builder.input("a", ir.DataType.DOUBLE, ["rows", 3])
    b = builder.input("b", ir.DataType.DOUBLE, [5, 3] if "transposed" in product else [3, 5])
    c = builder.input("c", ir.DataType.DOUBLE, [5])
    y = op.MatMul(a, b) if product == "MatMul" else op.Gemm(a, b, alpha=2.0, transB=int("transposed" in product))
    y.shape, y.type = ir.Shape(["rows", 5]), a.type
    z = op.Add(c, y) if swapped else op.Add(y, c)
    z.shape, z.type, z.name = ir.Shape(["rows", 5]), a.type, "z"
    builder.add_output(z, "z")
    model = ir.Model(graph, ir_version=10)
    rng = np.random.default_rng(0)
    feeds = {
        str(x.name): rng.standard_normal([4 if d == "rows" else int(d) for d in map(str, dims(x))]) for x in (a, b, c)
    }
    (before,) = map(np.asarray, evaluator(model.clone()).run(None, feeds))
    add_in_product(model, biases)
    assert [node.op_type for node in graph] == ["Gemm"]
    (after,) = map(np.asarray, evaluator(model).run(None, feeds))
    np.testing.assert_allclose(after, before, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 5), (4, 1)])
def test_a_sum_that_broadcasts_the_product_stays(shape):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="sum")
    builder = GraphBuilder(graph)
    op = builder.op
    a = builder.input("a", ir.DataType.FLOAT, [shape[0], 3])
    b = builder.input("b", ir.DataType.FLOAT, [3, shape[1]])
    c = builder.input("c", ir.DataType.FLOAT, [4, 5])
    y = op.MatMul(a, b)
    y.shape, y.type = ir.Shape(shape), a.type
    z = op.Add(y, c)
    z.shape, z.type, z.name = ir.Shape([4, 5]), a.type, "z"
    builder.add_output(z, "z")
    model = ir.Model(graph, ir_version=10)
    add_in_product(model, biases)
    assert [node.op_type for node in graph] == ["MatMul", "Add"]
