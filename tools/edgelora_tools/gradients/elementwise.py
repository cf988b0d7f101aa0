"""Elementwise arithmetic with broadcasting. ∘ is the elementwise product, [·] is 1 where true, else 0."""

from __future__ import annotations

import math
from functools import cache, partial

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import float_of, operand, operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import REAL, indicator, unbroadcast

# --- two operands


@gradient_rule("Add")
def add(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = A + B; dA = dY, dB = dY."""
    a, b = operands(node)
    return lambda: unbroadcast(op, dy, a), lambda: unbroadcast(op, dy, b)


@gradient_rule("Sub")
def sub(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = A − B; dA = dY, dB = −dY."""
    a, b = operands(node)
    return lambda: unbroadcast(op, dy, a), lambda: op.Neg(unbroadcast(op, dy, b))


@gradient_rule("Mul")
def mul(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = A∘B; dA = dY∘B, dB = dY∘A."""
    a, b = operands(node)
    return (
        lambda: unbroadcast(op, op.Mul(dy, b), a),
        lambda: unbroadcast(op, op.Mul(dy, a), b),
    )


@gradient_rule("Div")
def div(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = A/B; dA = dY/B, dB = −(dY∘Y)/B."""
    a, b = operands(node)
    (y,) = node.outputs
    return (
        lambda: unbroadcast(op, op.Div(dy, b), a),
        lambda: op.Neg(op.Div(unbroadcast(op, op.Mul(dy, y), b), b)),
    )


@gradient_rule("Pow")
def pow_(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = A^B.

    dA = dY∘B∘A^(B−1)
    dB = dY∘Y∘log A, and 0 where A = 0
    """
    a, b = operands(node)
    (y,) = node.outputs

    def slope() -> ir.Value:  # B∘A^(B−1), without Pow where the exponent is a small constant
        match float_of(b):
            case 2.0:
                return op.Mul(a, 2.0)
            case 3.0:
                return op.Mul(op.Mul(a, a), 3.0)
            case 0.5:
                return op.Mul(op.Reciprocal(y), 0.5)
            case -1.0:
                return op.Neg(op.Mul(y, y))
        exponent = op.Cast(b, to=a.dtype) if b.dtype != a.dtype else b
        return op.Mul(exponent, op.Pow(a, op.Sub(exponent, 1.0)))

    def db() -> ir.Value:
        safe = op.Add(a, indicator(op, op.Equal(a, 0.0), a))  # log 1 = 0 where A = 0
        return unbroadcast(op, op.Mul(dy, op.Mul(y, op.Log(safe))), b)

    return lambda: unbroadcast(op, op.Mul(dy, slope()), a), db


@gradient_rule("Mod")
def mod(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = A − N∘B, N the integer quotient; dA = dY, dB = −dY∘N, N = (A − Y)/B."""
    a, b = operands(node)
    (y,) = node.outputs
    return (
        lambda: unbroadcast(op, dy, a),
        lambda: op.Neg(unbroadcast(op, op.Mul(dy, op.Round(op.Div(op.Sub(a, y), b))), b)),
    )


# --- any number of operands


@gradient_rule("Sum")
def sum_(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = Σᵢ Xᵢ; dXᵢ = dY."""
    return [partial(unbroadcast, op, dy, x) for x in operands(node)]


@gradient_rule("Mean")
def mean(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = (1/n)·Σᵢ Xᵢ over n operands; dXᵢ = dY/n."""
    xs = operands(node)
    share = cache(lambda: op.Mul(dy, 1.0 / len(xs)))
    return [partial(lambda x: unbroadcast(op, share(), x), x) for x in xs]


@gradient_rule("Max", "Min")
def extremum(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = max(X₁, …, Xₙ) or min; dXᵢ = dY∘[Xᵢ = Y]/Σⱼ[Xⱼ = Y]: equal operands share the cotangent."""
    xs = operands(node)
    (y,) = node.outputs
    if len(xs) == 1:
        return (lambda: dy,)
    chosen = cache(lambda x: indicator(op, op.Equal(x, y), dy))
    share = cache(lambda: op.Div(dy, op.Sum(*map(chosen, xs))))
    return [partial(lambda x: unbroadcast(op, op.Mul(share(), chosen(x)), x), x) for x in xs]


@gradient_rule("Where")
def where(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = A where C, else B; dA = dY∘[C], dB = dY∘[¬C]."""
    c, a, b = operands(node)
    return (
        None,
        lambda: unbroadcast(op, op.Mul(dy, indicator(op, c, dy)), a),
        lambda: unbroadcast(op, op.Mul(dy, indicator(op, op.Not(c), dy)), b),
    )


@gradient_rule("Clip")
def clip(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = min(max(X, L), H).

    dX = dY∘[L < Y]∘[Y < H]
    dL = Σ dY∘[X < L]∘[L < H]
    dH = Σ dY∘[max(X, L) > H]

    The limits are scalars, or broadcast to X, and either may be absent. Y stands for X, which need not be kept then.
    """
    x, low, high = node.inputs[0], operand(node, 1), operand(node, 2)
    (y,) = node.outputs

    def dx() -> ir.Value:
        above = [op.Greater(y, low)] if low is not None else []
        below = [op.Less(y, high)] if high is not None else []
        match above + below:
            case []:
                return dy
            case [inside]:
                return op.Mul(dy, indicator(op, inside, dy))
            case [above, below]:
                return op.Mul(dy, indicator(op, op.And(above, below), dy))
        raise AssertionError

    def limit(cut: ir.Value, of: ir.Value | None) -> ir.Value:
        assert of is not None
        return unbroadcast(op, op.Mul(dy, indicator(op, cut, dy)), of)

    def dlow() -> ir.Value:
        below = op.Less(x, low)
        return limit(below if high is None else op.And(below, op.Less(low, high)), low)

    return dx, dlow, lambda: limit(op.Greater(x if low is None else op.Max(x, low), high), high)


# --- one operand


@gradient_rule("Neg")
def neg(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = −X; dX = −dY."""
    return (lambda: op.Neg(dy),)


@gradient_rule("Abs")
def abs_(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = |X|; dX = dY∘sign X."""
    (x,) = operands(node)
    return (lambda: op.Mul(dy, op.Sign(x)),)


@gradient_rule("Sqrt")
def sqrt(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = √X; dX = ½dY/Y, and 0 where Y = 0.

    There the derivative is infinite; but a deviation is the root of a variance whose own derivative is 0.
    """
    (y,) = node.outputs
    return (lambda: op.Div(op.Mul(dy, 0.5), op.Where(op.Equal(y, 0.0), math.inf, y)),)


@gradient_rule("Reciprocal")
def reciprocal(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = 1/X; dX = −dY∘Y²."""
    (y,) = node.outputs
    return (lambda: op.Neg(op.Mul(dy, op.Mul(y, y))),)


@gradient_rule("Exp")
def exp(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = exp X; dX = dY∘Y."""
    (y,) = node.outputs
    return (lambda: op.Mul(dy, y),)


@gradient_rule("Log")
def log(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = log X; dX = dY/X."""
    (x,) = operands(node)
    return (lambda: op.Div(dy, x),)


@gradient_rule("Erf")
def erf(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = erf X; dX = dY∘(2/√π)·exp(−X²)."""
    (x,) = operands(node)
    return (lambda: op.Mul(op.Mul(dy, 2.0 / math.sqrt(math.pi)), op.Exp(op.Neg(op.Mul(x, x)))),)


@gradient_rule("Sin")
def sin(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = sin X; dX = dY∘cos X."""
    (x,) = operands(node)
    return (lambda: op.Mul(dy, op.Cos(x)),)


@gradient_rule("Cos")
def cos(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = cos X; dX = −dY∘sin X."""
    (x,) = operands(node)
    return (lambda: op.Neg(op.Mul(dy, op.Sin(x))),)


@gradient_rule("Tan")
def tan(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = tan X; dX = dY∘(1 + Y²)."""
    (y,) = node.outputs
    return (lambda: op.Mul(dy, op.Add(op.Mul(y, y), 1.0)),)


@gradient_rule("Sinh")
def sinh(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = sinh X; dX = dY∘cosh X."""
    (x,) = operands(node)
    return (lambda: op.Mul(dy, op.Cosh(x)),)


@gradient_rule("Cosh")
def cosh(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = cosh X; dX = dY∘sinh X."""
    (x,) = operands(node)
    return (lambda: op.Mul(dy, op.Sinh(x)),)


@gradient_rule("Asin")
def asin(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = arcsin X; dX = dY/√(1 − X²)."""
    (x,) = operands(node)
    return (lambda: op.Div(dy, op.Sqrt(op.Sub(1.0, op.Mul(x, x)))),)


@gradient_rule("Acos")
def acos(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = arccos X; dX = −dY/√(1 − X²)."""
    (x,) = operands(node)
    return (lambda: op.Neg(op.Div(dy, op.Sqrt(op.Sub(1.0, op.Mul(x, x))))),)


@gradient_rule("Atan")
def atan(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = arctan X; dX = dY/(1 + X²)."""
    (x,) = operands(node)
    return (lambda: op.Div(dy, op.Add(op.Mul(x, x), 1.0)),)


@gradient_rule("Asinh")
def asinh(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = arsinh X; dX = dY/√(X² + 1)."""
    (x,) = operands(node)
    return (lambda: op.Div(dy, op.Sqrt(op.Add(op.Mul(x, x), 1.0))),)


@gradient_rule("Acosh")
def acosh(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = arcosh X; dX = dY/√(X² − 1)."""
    (x,) = operands(node)
    return (lambda: op.Div(dy, op.Sqrt(op.Sub(op.Mul(x, x), 1.0))),)


@gradient_rule("Atanh")
def atanh(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = artanh X; dX = dY/(1 − X²)."""
    (x,) = operands(node)
    return (lambda: op.Div(dy, op.Sub(1.0, op.Mul(x, x))),)


# --- the same numbers in another guise


@gradient_rule("Identity")
def identity(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X; dX = dY."""
    return (lambda: dy,)


@gradient_rule("Dropout")
def dropout(op: OpBuilder, node: ir.Node, dy: ir.Value, dmask: None = None) -> Thunks:
    """Y = X, as Dropout is in inference; dX = dY.

    In training mode t = 1, and where that is computed: Y = X∘M/(1 − t·ratio), dX = dY∘M/(1 − t·ratio). The mask M
    is an output; a node that leaves it out is given it.
    """
    x, ratio, training = node.inputs[0], operand(node, 1), operand(node, 2)
    assert x is not None
    if training is None or float_of(training) == 0.0 or float_of(ratio) == 0.0:
        return (lambda: dy,)

    def dx() -> ir.Value:
        node.resize_outputs(2)
        y, m = node.outputs
        m.name = m.name or f"{y.name}.mask"
        m.shape, m.type = x.shape, ir.TensorType(ir.DataType.BOOL)
        share = op.Constant(value_float=0.5) if ratio is None else ratio
        kept = op.Sub(1.0, op.Mul(indicator(op, training, dy), op.CastLike(share, dy)))
        return op.Mul(dy, op.Div(indicator(op, m, dy), kept))

    return (dx,)


@gradient_rule("Cast", "CastLike")
def cast(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X in another type; dX = dY in the type of X, or as it is where X holds codes."""
    x = node.inputs[0]
    assert x is not None
    return (lambda: dy if dy.dtype == x.dtype or x.dtype not in REAL else op.CastLike(dy, x),)
