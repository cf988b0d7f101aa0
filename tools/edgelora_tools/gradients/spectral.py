"""Fourier transforms. F is the transform of length L, F* = L·F⁻¹ its adjoint; a complex number is two real ones."""

from __future__ import annotations

from functools import cache

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import ints_of, operand, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import annotate, axis_of, filled, indicator, rank, shape_of, size_of


@gradient_rule("DFT")
def dft(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = F·X along axis, with X cut off or filled up with zeros to the length L.

    dX = F*·dY; where X is real, the real part of it
    inverse: Y = F⁻¹·X, dX = F·dY/L
    inverse and one-sided: Y is real, X its first L/2 + 1 frequencies, which stand for their conjugates too:
        dX = w∘F·dY/L, w = 1 at frequency 0 and at L/2, 2 elsewhere

    dY is 0 at the frequencies that a one-sided Y lacks, and dX at what was cut off.
    """
    x, length, which = node.inputs[0], operand(node, 1), operand(node, 2)
    assert x is not None
    inverse, onesided = node.attributes.get_int("inverse", 0), node.attributes.get_int("onesided", 0)
    known = [-2] if which is None else ints_of(which)
    if known is None:
        raise refuse(node, "computes its axis")
    axis = axis_of(known[0], x)
    (y,) = node.outputs

    def dx() -> ir.Value:
        n = length if length is not None else _scalar(op, size_of(op, y if inverse else x, axis))
        if not inverse:
            back = op.Mul(op.DFT(dy, n, axis, inverse=1), indicator(op, n, dy))
        else:
            back = op.Div(op.DFT(dy, n, axis, onesided=onesided), indicator(op, n, dy))
        if inverse and onesided:
            back = op.Mul(back, _weights(op, n, back, axis))
        back.shape = ir.Shape([None] * rank(x))
        more = op.Sub(size_of(op, x, axis), size_of(op, back, axis))
        part = op.Sub(size_of(op, x, -1), [2])  # the real part, or both
        return annotate(op.Pad(back, op.Concat([0, 0], more, part, axis=0), None, [axis, rank(x) - 1]), x)

    return (dx,)


def _scalar(op: OpBuilder, x: ir.Value) -> ir.Value:
    return op.Squeeze(x, [0])


def _weights(op: OpBuilder, n: ir.Value, like: ir.Value, axis: int) -> ir.Value:
    """How often each frequency of a one-sided spectrum stands in the whole one, along `axis`."""
    k = op.Range(op.Constant(value_int=0), op.Add(op.Div(n, 2), 1), op.Constant(value_int=1))
    alone = op.Or(op.Equal(k, 0), op.Equal(op.Mul(k, 2), n))
    return op.Unsqueeze(op.Sub(2.0, indicator(op, alone, like)), [a for a in range(rank(like)) if a != axis])


@gradient_rule("STFT")
def stft(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = F·(X[P]∘w): the transform of every frame; P[f, n] = f·step + n are the frames' positions.

    dX = 0, plus the real part of (F*·dY)∘w at P, or both parts where X is complex
    dw = Σ X[P]∘(F*·dY), over everything but n
    """
    x, step, w, length = node.inputs[0], node.inputs[1], operand(node, 2), operand(node, 3)
    assert x is not None and step is not None
    if rank(x) != 3:
        raise refuse(node, "has a signal that is not [batch, length, 1 or 2]")

    @cache
    def frame() -> ir.Value:
        """L, a scalar."""
        if length is not None:
            return op.Reshape(length, op.Constant(value=ir.tensor([], dtype=ir.DataType.INT64)))
        return _scalar(op, size_of(op, w, 0) if w is not None else size_of(op, x, 1))

    @cache
    def positions() -> ir.Value:
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        starts = op.Mul(op.Range(zero, _scalar(op, size_of(op, dy, 1)), one), step)
        return op.Add(op.Unsqueeze(starts, [1]), op.Range(zero, frame(), one))

    @cache
    def dframes() -> ir.Value:
        """F*·dY, `[batch, frames, L, 1 or 2]`."""
        back = op.Mul(op.DFT(dy, frame(), 2, inverse=1), indicator(op, frame(), dy))
        return op.Slice(back, [0], size_of(op, x, 2), [3])

    def dx() -> ir.Value:
        weighted = dframes() if w is None else op.Mul(dframes(), op.Unsqueeze(w, [1]))
        zeros = filled(op, 0.0, op.Gather(shape_of(op, x), [1, 0, 2]), dy)
        rows = op.Transpose(weighted, perm=[1, 2, 0, 3])
        sums = op.ScatterND(zeros, op.Unsqueeze(positions(), [-1]), rows, reduction="add")
        return annotate(op.Transpose(sums, perm=[1, 0, 2]), x)

    def dw() -> ir.Value:
        assert w is not None
        products = op.Mul(op.Gather(x, positions(), axis=1), dframes())
        return annotate(op.ReduceSum(products, [0, 1, 3], keepdims=0), w)

    return dx, None, dw
