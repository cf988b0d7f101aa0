"""Reductions over axes, and running sums. dY↑ is dY with the reduced axes put back, of size 1."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import ints_of, operand, operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import count_along, expand_like, indicator, rank, shape_of


def restore(op: OpBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """`dy` of the shape of the reduction's output, with the reduced axes put back where they were dropped.

    A scalar broadcasts as it is, and so does what has kept its rank. That the reduction of no axis keeps
    it too makes every rule below hold for `noop_with_empty_axes`.
    """
    x, axes = node.inputs[0], operand(node, 1)
    assert x is not None
    if axes is None or rank(dy) in (0, rank(x)):
        return dy
    return op.Unsqueeze(dy, axes)


@gradient_rule("ReduceSum")
def reduce_sum(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = Σ X; dX = dY↑."""
    x = operands(node)[0]
    return (lambda: expand_like(op, restore(op, node, dy), x),)


@gradient_rule("ReduceMean")
def reduce_mean(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = (1/n)·Σ X over n elements; dX = dY↑/n."""
    x = operands(node)[0]
    return (lambda: expand_like(op, restore(op, node, op.Div(dy, _reduced_count(op, node, x))), x),)


def _reduced_count(op: OpBuilder, node: ir.Node, x: ir.Value) -> ir.Value | float:
    """How many elements of `x` make one of the reduction's output."""
    given, (y,) = operand(node, 1), node.outputs
    axes = ints_of(given) or ([] if _noop(node) else list(range(rank(x))))
    if given is not None and ints_of(given) is None:
        whole, part = (op.ReduceProd(shape_of(op, v), keepdims=0) for v in (x, y))
        return indicator(op, op.Div(whole, part), x)
    return count_along(op, x, axes)


@gradient_rule("ReduceMax", "ReduceMin")
def reduce_extremum(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = max X or min X; dX = dY↑∘[X = Y↑]/Σ[X = Y↑]: equal elements share the cotangent."""
    (x, *rest), (y,) = operands(node), node.outputs

    def dx() -> ir.Value:
        chosen = indicator(op, op.Equal(x, restore(op, node, y)), x)
        count = op.ReduceSum(chosen, *rest, keepdims=1, noop_with_empty_axes=_noop(node))
        return op.Mul(op.Div(restore(op, node, dy), count), chosen)

    return (dx,)


@gradient_rule("ReduceProd")
def reduce_prod(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = Π X; dX = dY↑∘Π of the other elements.

    With Z = [X = 0], z = ΣZ and P = Π(X + Z), the product of what is not zero, the others multiply to
    P/X where z = 0, to P at the zero where z = 1, and to 0 elsewhere:  P/(X + Z)∘([z = 0] + [z = 1]∘Z).
    """
    x, *rest = operands(node)

    def dx() -> ir.Value:
        zero = indicator(op, op.Equal(x, 0.0), x)
        z = op.ReduceSum(zero, *rest, keepdims=1, noop_with_empty_axes=_noop(node))
        filled = op.Add(x, zero)
        p = op.ReduceProd(filled, *rest, keepdims=1, noop_with_empty_axes=_noop(node))
        none, one = (indicator(op, op.Equal(z, count), x) for count in (0.0, 1.0))
        others = op.Mul(op.Div(p, filled), op.Add(none, op.Mul(one, zero)))
        return op.Mul(restore(op, node, dy), others)

    return (dx,)


@gradient_rule("ReduceL1")
def reduce_l1(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = Σ|X|; dX = dY↑∘sign X."""
    x = operands(node)[0]
    return (lambda: op.Mul(restore(op, node, dy), op.Sign(x)),)


@gradient_rule("ReduceL2")
def reduce_l2(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = √ΣX²; dX = (dY/Y)↑∘X, and 0 where Y = 0."""
    (x, *_), (y,) = operands(node), node.outputs

    def dx() -> ir.Value:
        safe = op.Add(y, indicator(op, op.Equal(y, 0.0), y))
        return op.Mul(restore(op, node, op.Div(dy, safe)), x)

    return (dx,)


@gradient_rule("ReduceSumSquare")
def reduce_sum_square(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = ΣX²; dX = 2dY↑∘X."""
    x = operands(node)[0]
    return (lambda: op.Mul(restore(op, node, op.Mul(dy, 2.0)), x),)


@gradient_rule("ReduceLogSum")
def reduce_log_sum(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = log ΣX; dX = (dY∘exp(−Y))↑."""
    (x, *_), (y,) = operands(node), node.outputs
    return (lambda: expand_like(op, restore(op, node, op.Mul(dy, op.Exp(op.Neg(y)))), x),)


@gradient_rule("ReduceLogSumExp")
def reduce_log_sum_exp(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = log Σ exp X; dX = dY↑∘exp(X − Y↑)."""
    (x, *_), (y,) = operands(node), node.outputs
    return (lambda: op.Mul(restore(op, node, dy), op.Exp(op.Sub(x, restore(op, node, y)))),)


def _noop(node: ir.Node) -> int:
    return node.attributes.get_int("noop_with_empty_axes", 0)


@gradient_rule("CumSum")
def cum_sum(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = running sum of X along an axis; dX = running sum of dY from the other end."""
    _, axis = operands(node)
    exclusive, reverse = node.attributes.get_int("exclusive", 0), node.attributes.get_int("reverse", 0)
    return (lambda: op.CumSum(dy, axis, exclusive=exclusive, reverse=1 - reverse),)


@gradient_rule("CumProd")
def cum_prod(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = running product of X along an axis; dX = R(dY∘Y)/X, R the running sum from the other end.

    Where X = 0 first, dX = R(dY∘Y'), Y' the product without that zero, and after it 0, as Y is from there on.
    """
    x, axis = operands(node)
    (y,) = node.outputs
    exclusive, reverse = node.attributes.get_int("exclusive", 0), node.attributes.get_int("reverse", 0)

    def back(v: ir.Value) -> ir.Value:
        return op.CumSum(v, axis, exclusive=exclusive, reverse=1 - reverse)

    def dx() -> ir.Value:
        zero = indicator(op, op.Equal(x, 0.0), x)
        before = op.CumSum(zero, axis, exclusive=1, reverse=reverse)
        first = op.Mul(zero, indicator(op, op.Equal(before, 0.0), x))
        without = op.CumProd(op.Add(x, first), axis, exclusive=exclusive, reverse=reverse)
        others = op.Div(back(op.Mul(dy, y)), op.Add(x, zero))
        return op.Add(others, op.Mul(first, back(op.Mul(dy, without))))

    return (dx,)
