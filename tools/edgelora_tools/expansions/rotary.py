"""Rotation of pairs of numbers by the angle of their position, written out."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.expansions.registry import expansion, uncovered
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.shapes import dims, rank


@expansion("RotaryEmbedding")
def rotary_embedding(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = pairs of X turned by the angles of row p of the tables; X is [batch, positions, width] or by head.

    Inputs: X, p `[1]` (the first position) or `[batch, positions]`, cosines and sines `[positions, pairs]`.
    """
    x, p, cos, sin = operands(node)
    if node.attributes.get_int("is_packed_batching", 0):
        raise uncovered("packs rows of different lengths")
    if node.attributes.get_float("scale", 1.0) != 1.0:
        raise uncovered("has a scale")
    heads = node.attributes.get_int("num_heads", 0)
    width = node.attributes.get_int("rotary_embedding_dim", 0)
    if rank(p) == 1:
        length = op.Squeeze(op.Shape(x, start=-2, end=-1), [0])
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        p = op.Unsqueeze(op.Add(p, op.Range(zero, length, one)), [0])
    if rank(x) == 4:
        x_by_head = x
    elif width and heads:
        x_by_head = op.Transpose(op.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])
    else:
        pairs = dims(cos)[1]
        if not isinstance(pairs, int):
            raise uncovered("has tables of unknown width")
        x_by_head = op.Transpose(op.Reshape(x, [0, 0, -1, 2 * pairs]), perm=[0, 2, 1, 3])
    tables = (op.Unsqueeze(op.Gather(table, p), [1]) for table in (cos, sin))
    y = turned(op, x_by_head, *tables, width=width, interleaved=bool(node.attributes.get_int("interleaved", 0)))
    return y if rank(x) == 4 else op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])


def turned(
    op: OpBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value, width: int = 0, interleaved: bool = False
) -> ir.Value:
    """Pairs (a, b) of the first `width` elements of `x`'s last axis (0: all) as (a·cos − b·sin, a·sin + b·cos).

    A pair is an element of the first half and one of the second, or two neighbours. The tables broadcast to
    [..., pairs].
    """
    rest = []
    if width:
        rest = [op.Slice(x, [width], [2**62], [-1])]
        x = op.Slice(x, [0], [width], [-1])
    if interleaved:
        apart = op.Reshape(x, [0, 0, 0, -1, 2])
        a, b = (op.Squeeze(half, [-1]) for half in op.Split(apart, axis=-1, num_outputs=2, _outputs=2))
    else:
        a, b = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
    turned_pairs = op.Sub(op.Mul(a, cos), op.Mul(b, sin)), op.Add(op.Mul(a, sin), op.Mul(b, cos))
    if interleaved:
        together = op.Concat(*(op.Unsqueeze(half, [-1]) for half in turned_pairs), axis=-1)
        y = op.Reshape(together, [0, 0, 0, -1])
    else:
        y = op.Concat(*turned_pairs, axis=-1)
    return op.Concat(y, *rest, axis=-1) if rest else y
