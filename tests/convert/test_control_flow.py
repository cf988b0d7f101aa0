"""Whole models with LSTM, GRU, If, Scan and Loop between their linear layers: converted, checked, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgelora_tools.gradients import RULES
from tests.convert.bundles import assert_checked, assert_same_outputs, to_bundle
from tests.convert.networks import FLOAT, INT64, Net

WIDTH, HIDDEN = 6, 8
SEQUENCES = ["batch", "time", WIDTH]


def sequences(batch: int, time: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((batch, time, WIDTH)).astype(np.float32)}


def between(opset: int, build: Callable[[Net, str], str], extra: Sequence = ()) -> onnx.ModelProto:
    """x `[batch, time, 6]` -> first -> time first -> `build` -> second -> y `[batch, 3]` or `[time, batch, 3]`."""
    net = Net(opset)
    x = net("Transpose", net.linear("x", "first", WIDTH, HIDDEN), perm=[1, 0, 2])
    net.output(net.linear(build(net, x), "second", HIDDEN, 3), "y")
    return net.model([("x", FLOAT, SEQUENCES), *extra], [("y", FLOAT, None)], check=False)


def recurrent(net: Net, op: str, x: str, outputs: Sequence[str], lens: str = "", **attributes: Any) -> list[str]:
    """A recurrent node with random weights; `outputs` are names, "" where one is left out."""
    d, g = 2 if attributes.get("direction") == "bidirectional" else 1, {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    hidden = HIDDEN // d
    w, r = (net.weight(f"{op}.{k}", d, g * hidden, n, scale=0.4) for k, n in (("w", HIDDEN), ("r", hidden)))
    b = net.weight(f"{op}.b", d, 2 * g * hidden, scale=0.2)
    net.nodes.append(helper.make_node(op, [x, w, r, b, lens], outputs, name=op, hidden_size=hidden, **attributes))
    return list(outputs)


@pytest.mark.parametrize("opset", [11, 14, 17, 22])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layer(op, opset, tmp_path):
    """The classifier's form: only the last state is read."""

    def build(net, x):
        recurrent(net, op, x, ["", "h", "c"][: 3 if op == "LSTM" else 2])
        return net.squeeze("h", [0])

    bundle = to_bundle(between(opset, build), tmp_path)
    assert_same_outputs(bundle, tmp_path / "out.onnx", sequences(3, 7))
    assert_checked(bundle)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_bidirectional_layer_with_lengths(op, tmp_path):
    """Every state is read, of sequences whose lengths come with them."""

    def build(net, x):
        time = net("Squeeze", net("Shape", x, start=0, end=1))
        short = net("Cast", net("Clip", "lens", net.const(1, np.int64), time), to=TensorProto.INT32)
        recurrent(net, op, x, ["states"], short, direction="bidirectional")
        joined = net("Transpose", "states", perm=[0, 2, 1, 3])
        return net("Reshape", joined, net.const([0, 0, HIDDEN], np.int64))

    model = between(17, build, [("lens", INT64, ["batch"])])
    bundle = to_bundle(model, tmp_path)
    inputs = {**sequences(3, 7), "lens": np.array([7, 2, 4])}
    assert_same_outputs(bundle, tmp_path / "out.onnx", inputs)
    assert_checked(bundle)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_layers_of_a_torch_module(op, tmp_path):
    """Two layers as torch exports them: packed weights are sliced, first states expanded, time is dynamic."""
    torch = pytest.importorskip("torch")

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(WIDTH, HIDDEN)
            self.layers = getattr(torch.nn, op)(HIDDEN, HIDDEN, num_layers=2, batch_first=True)
            self.second = torch.nn.Linear(HIDDEN, 3)

        def forward(self, x):
            return self.second(self.layers(self.first(x))[0])

    torch.manual_seed(0)
    dynamic = torch.export.Dim.DYNAMIC
    path = tmp_path / "tagger.onnx"
    torch.onnx.export(
        Tagger().eval(), (torch.randn(2, 5, WIDTH),), path, input_names=["x"], dynamo=True, verbose=False,
        dynamic_shapes=({0: dynamic, 1: dynamic},),
    )  # fmt: skip
    bundle = to_bundle(path, tmp_path)
    assert [point.id for point in bundle.manifest.trainable] == ["first", "second"]
    assert_same_outputs(bundle, path, sequences(3, 7))
    assert_checked(bundle)


def graph(name: str, nodes: Sequence, inputs: Sequence = (), outputs: Sequence = ()) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), name, [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
    )  # fmt: skip


def branches(hidden: str, then: str, otherwise: str) -> dict[str, Any]:
    """Branches that apply one operator to a value from outside."""
    return {
        key: graph(key, [helper.make_node(op, [hidden], [f"{key}_out"], name=f"{key}_node")],
                   outputs=[(f"{key}_out", FLOAT, None)])
        for key, op in (("then_branch", then), ("else_branch", otherwise))
    }  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("offset", [-100.0, 100.0], ids=["else", "then"])
def test_if_on_data(opset, offset, tmp_path):
    """The samples of the check all take one branch; each is tried."""

    def build(net, x):
        last = net("Tanh", net.reduce_mean(x, [0], keepdims=0))
        large = net("Greater", net("ReduceMax", net("Add", "x", net.const(offset)), keepdims=0), net.const(0.0))
        return net("If", large, **branches(last, "Sin", "Softplus"))

    bundle = to_bundle(between(opset, build), tmp_path)
    assert_same_outputs(bundle, tmp_path / "out.onnx", sequences(3, 7))
    assert_checked(bundle)


def test_if_with_a_large_branch(tmp_path):
    """Branches of several nodes with weights of their own, one of which nests another If."""

    def build(net, x):
        last = net.reduce_mean(x, [0], keepdims=0)
        weight, positive = (
            net.weight("inner", HIDDEN, HIDDEN),
            net("Greater", net("ReduceSum", "x", keepdims=0), net.const(0.0)),
        )
        inner = helper.make_node("If", [positive], ["inner_out"], name="inner_if", **branches("gelu", "Sin", "Exp"))
        then = graph(
            "then_branch",
            [
                helper.make_node("MatMul", [last, weight], ["product"], name="product"),
                helper.make_node("Tanh", ["product"], ["gelu"], name="gelu"),
                inner,
                helper.make_node("Mul", ["inner_out", last], ["then_out"], name="joined"),
            ],
            outputs=[("then_out", FLOAT, None)],
        )
        other = graph(
            "else_branch", [helper.make_node("Identity", [last], ["else_out"])], outputs=[("else_out", FLOAT, None)]
        )
        condition = net("Less", net("ReduceMin", "x", keepdims=0), net.const(10.0))
        return net("If", condition, then_branch=then, else_branch=other)

    bundle = to_bundle(between(17, build), tmp_path)
    for seed in range(3):
        assert_same_outputs(bundle, tmp_path / "out.onnx", sequences(2, 3, seed))
    assert_checked(bundle)


def scan_body(weight: str) -> onnx.GraphProto:
    """S = tanh(S₋₁·W + X), Y = S∘X, with a constant of its own."""
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    state, element = ("s", FLOAT, ["batch", HIDDEN]), ("e", FLOAT, ["batch", HIDDEN])
    body = graph(
        "body",
        [
            helper.make_node("MatMul", ["s", weight], ["turned"]),
            helper.make_node("Mul", ["turned", "half"], ["halved"]),
            helper.make_node("Add", ["halved", "e"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["next"]),
            helper.make_node("Mul", ["next", "e"], ["product"]),
        ],
        [state, element],
        [("next", FLOAT, None), ("product", FLOAT, None)],
    )
    body.initializer.append(half)
    return body


@pytest.mark.parametrize("opset", [11, 16, 19])
@pytest.mark.parametrize("time", ["time", 4], ids=["dynamic", "static"])
def test_scan(opset, time, tmp_path):
    def build(net, x):
        first = net("Gather", x, net.const(0, np.int64), axis=0)
        weight = net.weight("turn", HIDDEN, HIDDEN)
        last, all_of = net(
            "Scan", first, x, outputs=2, num_scan_inputs=1, scan_input_directions=[1], body=scan_body(weight)
        )
        return net("Add", net.reduce_sum(all_of, [0], keepdims=0), last)

    model = between(opset, build)
    if time != "time":
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = time
    bundle = to_bundle(model, tmp_path)
    assert_same_outputs(bundle, tmp_path / "out.onnx", sequences(3, 4))
    assert_checked(bundle)


def loop_body(weight: str, go_on: Sequence) -> onnx.GraphProto:
    """S = sin(S₋₁·W) + S₋₁/(1 + step); the nodes of `go_on` make "again"."""
    one = numpy_helper.from_array(np.array(1.0, np.float32), "one")
    limit = numpy_helper.from_array(np.array(6.0, np.float32), "limit")
    body = graph(
        "body",
        [
            helper.make_node("Cast", ["step"], ["number"], to=FLOAT),
            helper.make_node("Add", ["number", "one"], ["counted"]),
            helper.make_node("Div", ["s", "counted"], ["shrunk"]),
            helper.make_node("MatMul", ["s", weight], ["turned"]),
            helper.make_node("Sin", ["turned"], ["bent"]),
            helper.make_node("Add", ["bent", "shrunk"], ["next"]),
            helper.make_node("Mul", ["next", "next"], ["squares"]),
            *go_on,
        ],
        [("step", INT64, []), ("going", TensorProto.BOOL, []), ("s", FLOAT, ["batch", HIDDEN])],
        [("again", TensorProto.BOOL, []), ("next", FLOAT, None), ("squares", FLOAT, None)],
    )
    body.initializer.extend([one, limit])
    return body


ALWAYS = [helper.make_node("Identity", ["going"], ["again"])]
UNTIL = [
    helper.make_node("ReduceSum", ["squares"], ["size"], keepdims=0),
    helper.make_node("Less", ["size", "limit"], ["again"]),
]


@pytest.mark.parametrize("opset", [11, 16, 19])
@pytest.mark.parametrize("count", ["four", "time", "none"])
def test_loop(opset, count, tmp_path):
    """As many steps as a constant says, as the sequence is long, as the data want."""

    def build(net, x):
        first = net.reduce_mean(x, [0], keepdims=0)
        steps = {
            "four": lambda: net.const(4, np.int64),
            "time": lambda: net("Gather", net("Shape", x), net.const(0, np.int64), axis=0),
            "none": lambda: net.const(50, np.int64),
        }[count]()
        body = loop_body(net.weight("turn", HIDDEN, HIDDEN, scale=0.7), UNTIL if count == "none" else ALWAYS)
        last, squares = net("Loop", steps, net.const(True, bool), first, outputs=2, name="the_loop", body=body)
        return net("Add", last, net.reduce_mean(squares, [0], keepdims=0))

    bundle = to_bundle(between(opset, build), tmp_path)
    for time in (1, 4, 9):
        assert_same_outputs(bundle, tmp_path / "out.onnx", sequences(3, time))
    assert_checked(bundle)


def test_loop_whose_state_grows_is_refused(tmp_path):
    """A list that every step makes longer has no place in a tensor of states."""

    def build(net, x):
        first = net.unsqueeze(net.reduce_mean(x, [0], keepdims=0), [0])
        body = graph(
            "body",
            [
                helper.make_node("Concat", ["s", "s"], ["next"], axis=0),
                helper.make_node("Identity", ["going"], ["again"]),
            ],
            [("step", INT64, []), ("going", TensorProto.BOOL, []), ("s", FLOAT, [None, None, HIDDEN])],
            [("again", TensorProto.BOOL, []), ("next", FLOAT, None)],
        )
        grown = net("Loop", net.const(3, np.int64), net.const(True, bool), first, name="the_loop", body=body)
        return net.reduce_sum(grown, [0], keepdims=0)

    (lost,) = to_bundle(between(17, build), tmp_path).manifest.lost
    assert lost.id == "first"
    assert "Loop (node the_loop): Loop (the_loop) changes the shape of a state" in lost.blocked_by


def test_missing_rule_in_a_body(tmp_path, monkeypatch):
    """What is lost is lost by the operator inside."""
    monkeypatch.delitem(RULES, ("", "Tan"), raising=False)

    def build(net, x):
        last = net.reduce_mean(x, [0], keepdims=0)
        large = net("Greater", net("ReduceMax", "x", keepdims=0), net.const(0.0))
        return net("If", large, name="the_if", **branches(last, "Sin", "Tan"))

    (lost,) = to_bundle(between(17, build), tmp_path).manifest.lost
    assert lost.id == "first"
    assert "If (node the_if)" in lost.blocked_by
    assert "ai.onnx::Tan (node" in lost.blocked_by
    assert "else_branch_node" in lost.blocked_by
