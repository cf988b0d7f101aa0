"""Each pass keeps what the graph computes, recognises what it must, and leaves alone what only looks like it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgelora_tools.normalize import OPSET, normalize
from edgelora_tools.passes.fuse_patterns import fuse_patterns
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.runner import open_session
from tests.convert.bundles import relative
from tests.convert.networks import FLOAT, INT64, Net

SQRT_TWO, SQRT_TWO_OVER_PI = math.sqrt(2), math.sqrt(2 / math.pi)


def x_of(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 2).astype(np.float32)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with open_session(model, optimize=False) as session:
        names = [y.name for y in session.get_outputs()]
        return dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))


def fused(net, feeds, outputs=("y",), shape=("a", "b", 8), tolerance=2e-6):
    """The operators of the normal form of the network, after it was seen to compute the same."""
    inputs = [(n, FLOAT, list(shape) if x.ndim > 1 else list(x.shape)) for n, x in feeds.items()]
    proto = net.model(inputs, [(y, FLOAT, None) for y in outputs], check=False)
    wanted = run(ir.from_proto(proto), feeds)
    got = run(normalize(ir.from_proto(proto)), feeds)
    assert set(got) == set(wanted) == set(outputs)
    for name in outputs:
        assert got[name].shape == wanted[name].shape
        assert relative(got[name], wanted[name]) < tolerance
    return [node.op_type for node in normalize(ir.from_proto(proto)).graph]


def both_orders(op, a, b, flipped):
    return (op, b, a) if flipped else (op, a, b)


FORMS = ["(x·bell)·half", "x·(bell·half)", "(x·half)·bell", "(x/2)·bell"]
FLIPS = list(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inner", ["x/√2", "x·(1/√2)"])
@pytest.mark.parametrize("flips", FLIPS)
def test_gelu_by_erf(form, inner, flips):
    net = Net(13 if flips[0] else 21)
    half, one = net.const(0.5), net.const(1.0)
    scaled = net("Div", "x", net.const(SQRT_TWO)) if inner == "x/√2" else net("Mul", "x", net.const(1 / SQRT_TWO))
    bell = net(*both_orders("Add", net("Erf", scaled), one, flips[0]))
    y = product(net, form, "x", bell, half, flips[1])
    net.output(y, "y")
    assert fused(net, {"x": x_of(2, 3, 8)}) == ["Gelu"]


def product(net, form, x, bell, half, flipped):
    if form == "(x·bell)·half":
        return net(*both_orders("Mul", net(*both_orders("Mul", x, bell, flipped)), half, flipped))
    if form == "x·(bell·half)":
        return net(*both_orders("Mul", x, net(*both_orders("Mul", bell, half, flipped)), flipped))
    if form == "(x/2)·bell":
        return net(*both_orders("Mul", net("Div", x, net.const(2.0)), bell, flipped))
    return net(*both_orders("Mul", net(*both_orders("Mul", x, half, flipped)), bell, flipped))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cube", ["x^3", "x·x·x", "x·(x·x)"])
@pytest.mark.parametrize("flips", FLIPS)
def test_gelu_by_tanh(form, cube, flips):
    net = Net(17)
    half, one = net.const(0.5), net.const(1.0)
    third = {
        "x^3": lambda: net("Pow", "x", net.const(3.0)),
        "x·x·x": lambda: net("Mul", net("Mul", "x", "x"), "x"),
        "x·(x·x)": lambda: net("Mul", "x", net("Mul", "x", "x")),
    }[cube]()
    scaled = net(*both_orders("Mul", third, net.const(0.044715), flips[0]))
    total = net(*both_orders("Add", "x", scaled, flips[1]))
    bell = net(*both_orders("Add", net("Tanh", net("Mul", total, net.const(SQRT_TWO_OVER_PI))), one, flips[0]))
    net.output(product(net, form, "x", bell, half, flips[1]), "y")
    assert fused(net, {"x": x_of(2, 3, 8)}) == ["Gelu"]


def test_gelu_by_tanh_with_an_integer_exponent():
    net = Net(17)
    cube = net("Pow", "x", net.const(3, np.int64))
    inner = net("Mul", net("Add", "x", net("Mul", cube, net.const(0.044715))), net.const(SQRT_TWO_OVER_PI))
    net.output(net("Mul", net("Mul", "x", net.const(0.5)), net("Add", net("Tanh", inner), net.const(1.0))), "y")
    assert fused(net, {"x": x_of(2, 3, 8)}) == ["Gelu"]


@pytest.mark.parametrize("attribute", ["none", "tanh"])
def test_fused_gelu_has_the_right_approximation(attribute):
    net = Net(17)
    net.output(net.gelu("x", operator=False, tanh=attribute == "tanh"), "y")
    proto = net.model([("x", FLOAT, ["a", 8])], [("y", FLOAT, None)], check=False)
    (node,) = normalize(ir.from_proto(proto)).graph
    assert node.op_type == "Gelu"
    assert node.attributes.get_string("approximate", "none") == attribute


def test_long_products_end():
    """A chain of squares has 2^20 factors."""
    net = Net(17)
    x = net("Tanh", "x")
    for _ in range(20):
        x = net("Mul", x, x)
    net.output(x, "y")
    assert fused(net, {"x": x_of(2, 3, 8)}) == ["Tanh", *["Mul"] * 20]


def test_gelu_of_a_product():
    """x itself is a product of two values."""
    net = Net(17)
    net.output(net.gelu(net("Mul", "x", "z"), operator=False), "y")
    assert fused(net, {"x": x_of(2, 3, 8), "z": x_of(2, 3, 8, seed=1)}) == ["Mul", "Gelu"]


def nearly_gelu(net, inner=SQRT_TWO, one=1.0, half=0.5, other="x"):
    bell = net("Add", net("Erf", net("Div", "x", net.const(inner))), net.const(one))
    return net("Mul", net("Mul", other, bell), net.const(half))


@pytest.mark.parametrize(
    "change",
    [{"inner": 1.5}, {"one": 1.1}, {"half": 0.6}, {"other": "z"}, {"inner": 2.0}],
    ids=["scale", "one", "half", "another input", "two"],
)
def test_what_is_nearly_gelu_is_left_alone(change):
    net = Net(17)
    net.output(nearly_gelu(net, **change), "y")
    feeds = {"x": x_of(2, 3, 8), "z": x_of(2, 3, 8, seed=1)}
    operators = fused(net, feeds if "other" in change else {"x": feeds["x"]})
    assert "Erf" in operators
    assert "Gelu" not in operators


def test_gelu_whose_inner_value_is_read_elsewhere():
    net = Net(17)
    bell = net("Add", net("Erf", net("Div", "x", net.const(SQRT_TWO))), net.const(1.0))
    net.output(bell, "bell")
    net.output(net("Mul", net("Mul", "x", bell), net.const(0.5)), "y")
    fused(net, {"x": x_of(2, 3, 8)}, outputs=("bell", "y"))


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("square", ["power", "integer power", "product"])
@pytest.mark.parametrize("division", ["Div", "Reciprocal"])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("axis", [-1, 2])
def test_layer_normalization(opset, square, division, flipped, axis):
    net = Net(opset)
    scale, bias = net.weight("norm.weight", 8, scale=1.0), net.weight("norm.bias", 8, scale=1.0)
    deviation = net("Sub", "x", net.reduce_mean("x", [axis]))
    if square == "product":
        squared = net("Mul", deviation, deviation)
    else:
        exponent = net.const(2.0) if square == "power" or opset < 12 else net.const(2, np.int64)
        squared = net("Pow", deviation, exponent)
    total = net(*both_orders("Add", net.reduce_mean(squared, [axis]), net.const(1e-5), flipped))
    deviate = net("Sqrt", total)
    if division == "Div":
        normal = net("Div", deviation, deviate)
    else:
        normal = net(*both_orders("Mul", deviation, net("Reciprocal", deviate), flipped))
    y = net(*both_orders("Mul", normal, scale, flipped))
    net.output(net(*both_orders("Add", y, bias, flipped)), "y")
    assert fused(net, {"x": x_of(2, 3, 8)}) == ["LayerNormalization"]


def written_norm(net, x="x", scale=None, bias=None, axis=-1, keep=None):
    """A written-out normalization; scale and bias are values, or left out."""
    deviation = net("Sub", x, net.reduce_mean(x, [axis]))
    variance = net.reduce_mean(net("Pow", deviation, net.const(2.0)), [axis])
    y = net("Div", deviation, net("Sqrt", net("Add", variance, net.const(1e-5))))
    y = net("Mul", y, scale) if scale else y
    return net("Add", y, bias) if bias else y


def test_norm_plus_an_activation_is_not_a_norm_with_bias():
    """Post-normalization, x + LN(f(x)): the residual stream is no bias."""
    net = Net(17)
    scale = net.weight("norm.weight", 8, scale=1.0)
    net.output(net("Add", written_norm(net, "z", scale), "x"), "y")
    operators = fused(net, {"x": x_of(2, 3, 8), "z": x_of(2, 3, 8, seed=1)})
    assert operators.count("Add") == 1


def test_layer_normalization_plus_an_activation_keeps_its_add():
    net = Net(21)
    y = net("LayerNormalization", "z", net.weight("norm.weight", 8, scale=1.0), axis=-1)
    net.output(net("Add", y, "x"), "y")
    assert fused(net, {"x": x_of(2, 3, 8), "z": x_of(2, 3, 8, seed=1)}) == ["LayerNormalization", "Add"]


def test_norm_times_an_activation_is_not_a_scaled_norm():
    """Adaptive normalization: the scale comes from another input."""
    net = Net(17)
    net.output(written_norm(net, "x", "z"), "y")
    operators = fused(net, {"x": x_of(2, 3, 8), "z": x_of(2, 3, 8, seed=1)})
    assert "Mul" in operators


@pytest.mark.parametrize("shape", [(), (1,), (3, 8), (3, 1)], ids=str)
def test_norm_with_a_scale_of_another_shape(shape):
    """A scalar, or one value per position: not the [width] that LayerNormalization takes."""
    net = Net(17)
    net.weights["s"] = x_of(*shape)
    net.output(written_norm(net, "x", "s"), "y")
    fused(net, {"x": x_of(2, 3, 8)})


def test_norm_over_another_axis():
    net = Net(17)
    net.output(written_norm(net, "x", net.weight("s", 8, scale=1.0), axis=1), "y")
    assert "LayerNormalization" not in fused(net, {"x": x_of(2, 3, 8)})


def test_norm_of_another_deviation():
    """The deviation that is divided is not the one that was squared."""
    net = Net(17)
    mean = net.reduce_mean("x", [-1])
    deviation, other = net("Sub", "x", mean), net("Sub", "z", mean)
    variance = net.reduce_mean(net("Mul", deviation, other), [-1])
    y = net("Div", deviation, net("Sqrt", net("Add", net("Abs", variance), net.const(1e-5))))
    net.output(net("Mul", y, net.weight("s", 8, scale=1.0)), "y")
    operators = fused(net, {"x": x_of(2, 3, 8), "z": x_of(2, 3, 8, seed=1)})
    assert "LayerNormalization" not in operators


def test_fusion_twice_changes_nothing():
    net = Net(17)
    x = net.gelu(net.layer_norm("x", "norm", operator=False), operator=False)
    net.output(x, "y")
    model = normalize(ir.from_proto(net.model([("x", FLOAT, ["a", "b", 16])], [("y", FLOAT, None)], check=False)))
    before = [n.op_type for n in model.graph]
    assert before == ["LayerNormalization", "Gelu"]
    assert [n.op_type for n in fuse_patterns(model).graph] == before


def test_tidy_keeps_outputs_and_merges_equal_nodes():
    net = Net(21)
    twice = net("Add", net("Tanh", "x"), net("Tanh", "x"))
    net("Exp", "x")
    net.output(twice, "y")
    net.output(twice, "z")
    proto = net.model([("x", FLOAT, ["a", 8])], [("y", FLOAT, None), ("z", FLOAT, None)], check=False)
    feeds = {"x": x_of(3, 8)}
    wanted, model = run(ir.from_proto(proto), feeds), ir.from_proto(proto)
    tidy(model)
    got = run(model, feeds)
    assert {n: y.tobytes() for n, y in got.items()} == {n: y.tobytes() for n, y in wanted.items()}
    assert sorted({n.op_type for n in model.graph}) == ["Add", "Identity", "Tanh"]
    assert sum(n.op_type == "Tanh" for n in model.graph) == 1


UNARY = ["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Softplus", "Identity"]


@st.composite
def graphs(draw):
    """A random small graph [a, b, 8] -> [a, b, 8] at a random opset, with constants of several kinds."""
    net = Net(draw(st.integers(11, 23)), seed=draw(st.integers(0, 99)))
    values = ["x", "z"]
    for step in range(draw(st.integers(1, 8))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.sampled_from(["unary", "binary", "constant", "matmul", "norm", "mean", "softmax", "shape",
                                     "transpose", "split", "gelu", "dropout", "slice", "where"]))  # fmt: skip
        if kind == "unary":
            y = net(draw(st.sampled_from(UNARY)), a)
        elif kind == "binary":
            y = net(draw(st.sampled_from(["Add", "Mul", "Sub", "Max"])), a, b)
        elif kind == "constant":
            shape = draw(st.sampled_from([(), (1,), (8,), (1, 1, 8)]))
            y = net("Mul", a, net.const(net.rng.standard_normal(shape), node=draw(st.booleans())))
        elif kind == "matmul":
            y = net.linear(a, f"linear{step}", 8, 8, bias=draw(st.booleans()))
        elif kind == "norm":
            y = written_norm(net, a, net.weight(f"s{step}", 8, scale=1.0), draw(st.sampled_from([None, b])))
        elif kind == "mean":
            axis = draw(st.sampled_from([1, 2, -1]))
            y = net("Add", a, net.reduce_mean(b, [axis]))
        elif kind == "softmax":
            y = net("Softmax", a, axis=2)
        elif kind == "shape":
            y = net("Reshape", net("Reshape", a, net.const([0, -1], np.int64)), net("Shape", b))
        elif kind == "transpose":
            y = net("Transpose", net("Tanh", net("Transpose", a, perm=[2, 0, 1])), perm=[1, 2, 0])
        elif kind == "split":
            one, two = net.split(a, [3, 5], axis=2)
            y = net("Concat", two, one, axis=2)
        elif kind == "gelu":
            y = net.gelu(a, operator=False, tanh=draw(st.booleans()))
        elif kind == "dropout":
            y = net("Dropout", a)
        elif kind == "slice":
            ends = [net.const([n], np.int64) for n in (0, 4, 2)]
            half = net("Slice", a, *ends)
            y = net("Concat", half, half, axis=2)
        else:
            y = net("Where", net("Less", a, b), a, b)
        values.append(y)
    net.output(values[-1], "y")
    return net


@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs())
def test_the_normal_form_computes_the_same(net):
    shape = ["a", "b", 8]
    proto = net.model([("x", FLOAT, shape), ("z", FLOAT, shape)], [("y", FLOAT, None)], check=False)
    model = ir.from_proto(proto)
    for a, b in ((1, 1), (2, 3)):
        feeds = {"x": x_of(a, b, 8), "z": x_of(a, b, 8, seed=1)}
        wanted = run(model.clone(), feeds)["y"]
        normal = normalize(model.clone())
        assert normal.graph.opset_imports[""] >= OPSET
        assert not {"Dropout", "Constant", "Identity"} & {n.op_type for n in normal.graph if n.outputs[0].name != "y"}
        got = run(normal, feeds)["y"]
        assert got.shape == wanted.shape
        assert relative(got, wanted) < 1e-5


def test_dropout_whose_mask_is_read_is_kept():
    net = Net(17)
    y, mask = net("Dropout", "x", outputs=2)
    net.output(net("Mul", y, net("Cast", mask, to=FLOAT)), "y")
    fused(net, {"x": x_of(2, 3, 8)})


def test_weights_behind_constant_arithmetic_are_folded():
    """A weight that is scaled, transposed and reshaped by constant nodes is a weight all the same."""
    net = Net(17)
    weight = net("Mul", net("Transpose", net.weight("w", 8, 8), perm=[1, 0]), net.const(2.0))
    net.output(net("MatMul", "x", net("Reshape", weight, net.const([8, 8], np.int64))), "y")
    proto = net.model([("x", FLOAT, ["a", "b", 8])], [("y", FLOAT, None)], check=False)
    model = normalize(ir.from_proto(proto))
    (node,) = model.graph
    assert node.op_type == "MatMul"
    assert node.inputs[1] is not None
    constant = node.inputs[1].const_value
    assert constant is not None
    np.testing.assert_allclose(constant.numpy(), 2 * net.weights["w"].T, rtol=1e-6)


def test_names_of_inputs_and_outputs_stay():
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", INT64, ["n"])],
        [helper.make_tensor_value_info(n, INT64, ["n"]) for n in ("y", "z")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    model = normalize(ir.from_proto(proto))
    assert [v.name for v in model.graph.inputs] == ["x"]
    got = run(model, {"x": np.arange(3)})
    assert {n: y.tolist() for n, y in got.items()} == {"y": [0, 1, 2], "z": [0, 1, 2]}
