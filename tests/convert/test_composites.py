"""Composites: recognised in every spelling, output-preserving, their gradients equal to those of their parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnxscript import OpBuilder

from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites import COMPOSITES, recognise_composites
from edgelora_tools.gradients import RULES
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.graphs import LOWERED
from edgelora_tools.lowering import DOMAIN, lower_nodes
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.reference import evaluator

Emit = Callable[..., ir.Value]


def constant(op: OpBuilder, values) -> ir.Value:
    array = np.asarray(values, np.float64)
    return op.builder.initializer(ir.tensor(array, name=f"constant{len(op.builder.graph.initializers)}"))


def mean_square(op: OpBuilder, x: ir.Value, square: str) -> ir.Value:
    squared = op.Pow(x, constant(op, 2.0)) if square == "pow" else op.Mul(x, x)
    return op.Add(op.ReduceMean(squared, [-1], keepdims=1), constant(op, 0.1))


def silu(op: OpBuilder, x: ir.Value) -> ir.Value:
    y = op.Mul(x, op.Sigmoid(x))
    y.shape = x.shape
    return y


def rms(root: str, square: str = "pow", gamma_first: bool = False) -> Emit:
    def emit(op, x):
        v = mean_square(op, x, square)
        if root == "div":
            normal = op.Div(x, op.Sqrt(v))
        elif root == "reciprocal":
            normal = op.Mul(x, op.Reciprocal(op.Sqrt(v)))
        elif root == "one over":
            normal = op.Mul(op.Div(constant(op, 1.0), op.Sqrt(v)), x)
        else:
            normal = op.Mul(x, op.Pow(v, constant(op, -0.5)))
        gamma = constant(op, [0.5, 1.5, -1.0, 2.0])
        return op.Mul(gamma, normal) if gamma_first else op.Mul(normal, gamma)

    return emit


def halves(op: OpBuilder, x: ir.Value, how: str) -> tuple[ir.Value, ir.Value]:
    if how == "split":
        first, second = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
        return first, second
    axis = 3 if how == "positive" else -1
    return op.Slice(x, [0], [2], [axis], [1]), op.Slice(x, [2], [9223372036854775807], [axis], [1])


def rotary(how: str, swapped: bool = False) -> Emit:
    def emit(op, x, cos, sin):
        first, second = halves(op, x, how)
        turned = op.Mul(op.Concat(op.Neg(second), first, axis=-1), sin)
        return op.Add(turned, op.Mul(cos, x)) if swapped else op.Add(op.Mul(x, cos), turned)

    return emit


def attend(safe: bool, axis: int = -1) -> Emit:
    def emit(op, s, v):
        p = op.Softmax(s, axis=axis)
        if safe:
            p = op.Where(op.IsNaN(p), constant(op, 0.0), p)
        return op.MatMul(p, v)

    return emit


@dataclass(frozen=True)
class Group:
    """A composite in one spelling: what it is, how it is written, the shapes of its inputs."""

    op_type: str
    emit: Emit
    shapes: tuple[tuple[int, ...], ...]
    label: str


LONG = "long rows"
_X = (2, 3, 4)
_ROTARY = ((2, 3, 5, 4), (2, 1, 5, 4), (1, 1, 5, 4))
_ATTEND = ((2, 3, 4, 5), (2, 3, 5, 6))
GROUPS = [
    Group("Silu", lambda op, x: op.Mul(x, op.Sigmoid(x)), (_X,), "x first"),
    Group("Silu", lambda op, x: op.Mul(op.Sigmoid(x), x), (_X,), "gate first"),
    Group("SwiGLU", lambda op, x, u: op.Mul(silu(op, x), u), (_X, _X), "gate first"),
    Group("SwiGLU", lambda op, x, u: op.Mul(u, silu(op, x)), (_X, _X), "gate last"),
    *(Group("RMSNormalization", rms(root), (_X,), root) for root in ("div", "reciprocal", "one over", "power")),
    Group("RMSNormalization", rms("div", "mul"), (_X,), "x∘x"),
    Group("RMSNormalization", rms("reciprocal", gamma_first=True), (_X,), "γ first"),
    *(Group("Rotary", rotary(how), _ROTARY, how) for how in ("split", "slice", "positive")),
    Group("Rotary", rotary("slice", swapped=True), _ROTARY, "swapped"),
    Group("Attend", attend(True), _ATTEND, "safe"),
    Group("Attend", attend(True, 3), _ATTEND, "axis 3"),
    Group("Attend", attend(False), _ATTEND, LONG),
]


def built(group: Group, symbolic: bool, recognise: bool) -> ir.Model:
    """The group between two Tanh, with its backward pass."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="group")
    builder = GraphBuilder(graph)
    op = builder.op
    inputs = [
        builder.input(f"x{i}", ir.DataType.DOUBLE, [*(f"d{n}" for n in shape[:-1]), shape[-1]] if symbolic else shape)
        for i, shape in enumerate(group.shapes)
    ]
    y = group.emit(op, *inputs)
    rows, columns = inputs[0], inputs[1 if group.op_type == "Attend" else 0]
    y.shape = ir.Shape([*dims(rows)[:-1], dims(columns)[-1]])
    z = op.Tanh(y)
    z.name = "z"
    builder.add_output(z, "z")
    model = ir.Model(graph, ir_version=10)
    if recognise:
        recognise_composites(model, long_rows=group.label == LONG)
        assert [node.op_type for node in graph if node.domain == DOMAIN] == [group.op_type]
    op = GraphBuilder(free_names(graph)).op
    cotangent = op.builder.input("c", ir.DataType.DOUBLE, list(z.shape or ()))
    grads = differentiate(op, list(graph), {z: cotangent}, inputs)
    for x in inputs:
        op.builder.add_output(op.Identity(grads[x]), f"grad.{x.name}")
    lower_nodes(graph, op, LOWERED)
    graph.opset_imports.pop(DOMAIN, None)
    assert all(node.domain == "" for node in graph)
    common.TopologicalSortPass()(model)
    return model


def feeds_of(group: Group) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {f"x{i}": rng.standard_normal(shape) for i, shape in enumerate(group.shapes)}
    if group.label == "safe":
        feeds["x0"][1, 2, 3] = -np.inf
    feeds["c"] = rng.standard_normal((*group.shapes[0][:-1], group.shapes[group.op_type == "Attend"][-1]))
    return feeds


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g.op_type} {g.label}")
def test_outputs_and_gradients_equal_those_of_the_parts(group, symbolic):
    feeds = feeds_of(group)
    with np.errstate(invalid="ignore"):
        parts = evaluator(built(group, symbolic, recognise=False)).run(None, feeds)
        whole = evaluator(built(group, symbolic, recognise=True)).run(None, feeds)
    for x, y in zip(map(np.asarray, whole), map(np.asarray, parts), strict=True):
        if group.label == "safe":  # where a row is NaN, the parts' gradient is NaN too; the composite's is 0
            assert np.isfinite(x).all()
            y = np.nan_to_num(y)
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_every_composite_is_tried_and_has_a_rule():
    names = {composite.op_type for composite in COMPOSITES}
    assert names == {group.op_type for group in GROUPS}
    assert {(DOMAIN, name) for name in names} <= RULES.keys()


def near_misses():
    """Groups that look like a composite and are none."""
    return [
        ("another gate", lambda op, x, v: op.Mul(x, op.Sigmoid(v)), ((2, 4), (2, 4))),
        ("a rotation the other way", lambda op, x, v: _turned_back(op, x, v), ((2, 1, 3, 4), (1, 1, 3, 4))),
        ("softmax over another axis", attend(True, 2), _ATTEND),
        ("softmax that keeps NaN", attend(False), _ATTEND),
        ("a mean of another axis", _other_mean, (_X,)),
        ("a product of another value", _other_value, (_X, _X)),
    ]


def _other_value(op, x, v):
    return op.Mul(op.Div(v, op.Sqrt(mean_square(op, x, "pow"))), constant(op, [1.0] * 4))


def _turned_back(op, x, v):
    first, second = halves(op, x, "split")
    return op.Add(op.Mul(x, v), op.Mul(op.Concat(second, op.Neg(first), axis=-1), v))


def _other_mean(op, x):
    v = op.Add(op.ReduceMean(op.Mul(x, x), [1], keepdims=1), constant(op, 0.1))
    return op.Mul(op.Div(x, op.Sqrt(v)), constant(op, [1.0] * 4))


@pytest.mark.parametrize(("label", "emit", "shapes"), near_misses(), ids=[label for label, *_ in near_misses()])
def test_near_misses_stay_as_they_are(label, emit, shapes):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name=label)
    builder = GraphBuilder(graph)
    y = emit(builder.op, *(builder.input(f"x{i}", ir.DataType.DOUBLE, shape) for i, shape in enumerate(shapes)))
    builder.add_output(y, "y")
    recognise_composites(ir.Model(graph, ir_version=10))
    assert not [node for node in graph if node.domain == DOMAIN]


def read_twice(op, x, u):
    gate = silu(op, x)
    return op.Add(op.Mul(gate, u), gate)


@pytest.mark.parametrize(
    ("emit", "shapes"),
    [(read_twice, (_X, _X)), (lambda op, x, u: op.Mul(silu(op, x), u), (_X, (4,)))],
    ids=["read twice", "one row"],
)
def test_a_gate_that_is_read_twice_or_meets_another_shape_stays_silu(emit, shapes):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="gate")
    builder = GraphBuilder(graph)
    x, u = (builder.input(name, ir.DataType.DOUBLE, shape) for name, shape in zip("xu", shapes, strict=True))
    builder.add_output(emit(builder.op, x, u), "y")
    recognise_composites(ir.Model(graph, ir_version=10))
    assert [node.op_type for node in graph if node.domain == DOMAIN] == ["Silu"]


@pytest.mark.parametrize("safe", [True, False])
def test_probabilities_that_are_read_elsewhere_stay(safe):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="attentions")
    builder = GraphBuilder(graph)
    s, v = (builder.input(n, ir.DataType.FLOAT, list(shape)) for n, shape in zip("sv", _ATTEND, strict=True))
    builder.add_output(attend(safe)(builder.op, s, v), "y")
    (p,) = (y for node in graph if node.op_type == ("Where" if safe else "Softmax") for y in node.outputs)
    builder.add_output(p, "attentions")
    recognise_composites(ir.Model(graph, ir_version=10), long_rows=True)
    assert [n.op_type for n in graph] == (["Softmax", "IsNaN", "Where", "MatMul"] if safe else ["Softmax", "MatMul"])
