"""If, Loop and Scan: what bodies read, return and take from outside; axes, directions, lengths, nesting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.bodies import body_input, close_body, new_body
from tests.gradients.case import Body, Case

Values = Sequence[ir.Value | None]
Compute = Callable[..., Sequence[ir.Value]]
TRUE, FALSE = np.array(True), np.array(False)


def branch(name: str, compute: Compute) -> Body:
    """A branch of an If: `compute(op, *all inputs)` returns its outputs."""

    def make(op: OpBuilder, values: Values) -> ir.Graph:
        inner = new_body(op, name)
        return close_body(inner, compute(inner, *values))

    return make


def steps(compute: Compute, states: int, axes: Sequence[int], outside: int = 0) -> Body:
    """The body of a Scan: `compute(op, *states, *slices, *outside)` returns the next states and what is emitted."""

    def make(op: OpBuilder, values: Values) -> ir.Graph:
        inner = new_body(op, "body")
        present = [v for v in values if v is not None]
        formals = [body_input(inner, v) for v in present[:states]]
        formals += [body_input(inner, v, a) for v, a in zip(present[states:], axes, strict=False)]
        return close_body(inner, compute(inner, *formals, *present[len(present) - outside :]))

    return make


def rounds(compute: Compute, outside: int = 0) -> Body:
    """The body of a Loop: `compute(op, number, *states, *outside)` returns whether to go on, states, the emitted."""

    def make(op: OpBuilder, values: Values) -> ir.Graph:
        inner = new_body(op, "body")
        number = body_input(inner, ir.Value(type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([])))
        body_input(inner, ir.Value(type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])))
        states = [body_input(inner, v) for v in values[2 : len(values) - outside] if v is not None]
        return close_body(inner, compute(inner, number, *states, *values[len(values) - outside :]))

    return make


def choice(condition: np.ndarray, then: Compute, otherwise: Compute, *shapes: tuple[int, ...], **others) -> Case:
    """An If whose branches take inputs of these shapes from outside."""
    bodies = {"then_branch": branch("then", then), "else_branch": branch("else", otherwise)}
    return Case("If", [condition, *shapes], bodies=bodies, captured=len(shapes), **others)


def go_on(op: OpBuilder) -> ir.Value:
    """True, as a body's condition."""
    return op.Constant(value=ir.tensor(True))


def numbered(op: OpBuilder, number: ir.Value, like: ir.Value) -> ir.Value:
    """The number of the step, from 1, in the type of `like`."""
    return op.Add(op.Cast(number, to=like.dtype), 1.0)


def leaky(op: OpBuilder, s: ir.Value, x: ir.Value, w: ir.Value) -> Sequence[ir.Value]:
    """S = tanh(S₋₁·W + X), Y = S∘X."""
    s = op.Tanh(op.Add(op.MatMul(s, w), x))
    return s, op.Mul(s, x)


def nested(op: OpBuilder, s: ir.Value, x: ir.Value, w: ir.Value) -> Sequence[ir.Value]:
    """A step that chooses: S = S₋₁∘W where Σ X > 0, else X; both branches read what the step computed."""
    bold = op.Sin(op.Mul(s, w))
    then, other = new_body(op, "then"), new_body(op, "else")
    bodies = {
        "then_branch": close_body(then, [then.Mul(bold, x)]),
        "else_branch": close_body(other, [other.Add(other.Mul(x, w), bold)]),
    }
    chosen = op.If(op.Greater(op.ReduceSum(x, keepdims=0), 0.0), **bodies)
    chosen.type, chosen.shape = s.type, s.shape
    return chosen, op.Mul(chosen, s)


def halves(op: OpBuilder, s: ir.Value, t: ir.Value, x: ir.Value, z: ir.Value) -> Sequence[ir.Value]:
    """Two states, two slices, two outputs; the last is a state too."""
    a, b = op.Mul(op.Sigmoid(s), x), op.Add(op.Mul(t, 0.5), op.ReduceSum(z, [0], keepdims=0))
    return a, op.Mul(b, a), op.Add(a, b), a


def search(op: OpBuilder, number: ir.Value, s: ir.Value, w: ir.Value) -> Sequence[ir.Value]:
    """S = S₋₁∘W + sin S₋₁ until the squares of S sum to 40."""
    s = op.Add(op.Mul(s, w), op.Sin(s))
    return op.Less(op.ReduceSum(op.Mul(s, s), keepdims=0), 40.0), s, op.Mul(s, w)


CASES = [
    *(
        choice(
            condition,
            lambda op, _, x, w: [op.Tanh(op.MatMul(x, w))],
            lambda op, _, x, w: [op.MatMul(op.Mul(x, x), op.Sin(w))],
            (2, 3),
            (3, 3),
            label=f" {condition}",
        )
        for condition in (TRUE, FALSE)
    ),
    *(
        choice(
            condition,
            lambda op, _, x, w: [op.Identity(x), op.Mul(x, 2.0)],
            lambda op, _, x, w: [op.Mul(x, w), op.Exp(w)],
            (2, 3),
            (2, 3),
            outputs=2,
            cotangents=cotangents,
            label=f" {condition} {cotangents}",
        )
        for condition in (TRUE, FALSE)
        for cotangents in ((0, 1), (1,))
    ),
    choice(TRUE, lambda op, _, x: (y := op.Sqrt(x), y), lambda op, _, x: (x, x), (4,), outputs=2, positive={1: 0.5}),
    Case("Scan", [(2, 3), (4, 2, 3), (3, 3)], {"num_scan_inputs": 1}, outputs=2, captured=1,
         bodies={"body": steps(leaky, 1, [0], outside=1)}),
    Case("Scan", [(2, 3), (4, 2, 3), (3, 3)], {"num_scan_inputs": 1}, outputs=2, captured=1, cotangents=(0,),
         bodies={"body": steps(leaky, 1, [0], outside=1)}, label=" last"),
    Case("Scan", [(2, 3), (4, 2, 3), (3, 3)], {"num_scan_inputs": 1}, outputs=2, captured=1, cotangents=(1,),
         bodies={"body": steps(leaky, 1, [0], outside=1)}, label=" stacked"),
    Case("Scan", [(2, 3), (1, 2, 3), (3, 3)], {"num_scan_inputs": 1}, outputs=2, captured=1,
         bodies={"body": steps(leaky, 1, [0], outside=1)}, label=" once"),
    Case("Scan", [(2, 3), (4, 2, 3), (3, 3)], {"num_scan_inputs": 1}, outputs=2, captured=1, wrt=(1,),
         bodies={"body": steps(leaky, 1, [0], outside=1)}, label=" of slices"),
    *(
        Case("Scan", [(2, 3), (2, 4, 3), (3, 3)],
             {"num_scan_inputs": 1, "scan_input_axes": [axis], "scan_output_axes": [axis],
              "scan_input_directions": [back], "scan_output_directions": [forth]},
             outputs=2, captured=1, bodies={"body": steps(leaky, 1, [1], outside=1)})
        for axis, back, forth in ((1, 0, 0), (1, 1, 0), (-2, 0, 1), (1, 1, 1))
    ),
    Case("Scan", [(2, 3), (2, 3), (2, 3, 4), (4, 5, 2, 3)],
         {"num_scan_inputs": 2, "scan_input_axes": [2, 0], "scan_input_directions": [0, 1],
          "scan_output_axes": [0, 1], "scan_output_directions": [1, 0]},
         outputs=4, bodies={"body": steps(halves, 2, [2, 0])}),
    Case("Scan", [(4, 3), (3,)], {"num_scan_inputs": 1}, captured=1,
         bodies={"body": steps(lambda op, x, w: [op.Mul(op.Sin(x), w)], 0, [0], outside=1)}, label=" no state"),
    Case("Scan", [(3,), (4, 3)], {"num_scan_inputs": 1}, outputs=1,
         bodies={"body": steps(lambda op, s, x: [op.Add(op.Mul(s, 0.5), x)], 1, [0])}, label=" linear"),
    Case("Scan", [(3,), (4, 3), (3,)], {"num_scan_inputs": 1}, outputs=2, captured=1,
         bodies={"body": steps(nested, 1, [0], outside=1)}, label=" nested"),
    Case("Loop", [np.array(4), TRUE, (2, 3), (2, 3)], outputs=2, captured=1,
         bodies={"body": rounds(lambda op, _, s, w: (go_on(op), op.Sin(op.Mul(s, w)), op.Mul(s, s)), outside=1)}),
    Case("Loop", [np.array(5), None, (2, 3), (3, 3)], outputs=2, captured=1, cotangents=(0,),
         bodies={"body": rounds(lambda op, i, s, w: (go_on(op), op.Tanh(op.MatMul(s, w)), s), outside=1)},
         label=" no condition"),
    Case("Loop", [np.array(3), TRUE, (2, 3)], outputs=2,
         bodies={"body": rounds(lambda op, i, s: (go_on(op), op.Mul(s, (n := numbered(op, i, s))), op.Div(s, n)))},
         label=" numbered"),
    Case("Loop", [np.array(3), TRUE, (2, 3), (2, 3)], outputs=2,
         bodies={"body": rounds(lambda op, i, s, t: (go_on(op), op.Add(t, s), s))}, label=" swapped"),
    Case("Loop", [None, TRUE, (2, 3), (2, 3)], outputs=2, captured=1, within={2: (1.0, 2.0), 3: (0.8, 1.4)},
         bodies={"body": rounds(search, outside=1)}, label=" until"),
    Case("Loop", [np.array(20), TRUE, (2, 3), (2, 3)], outputs=2, captured=1, computed=(0,),
         within={2: (1.0, 2.0), 3: (0.8, 1.4)}, bodies={"body": rounds(search, outside=1)}, label=" until, at most"),
]  # fmt: skip
