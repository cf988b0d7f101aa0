"""Rotary in a training graph: one kernel of ONNX Runtime's, where both halves of a row turn by the same angles.

`com.microsoft::RotaryEmbedding` reads X once and writes Y; written out, the two halves are cut, negated, joined,
multiplied and added, six nodes of which most wait for memory. The standard operator is of an opset (23) that not every
ONNX Runtime has which the runtime takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.quantized_product import MICROSOFT
from edgelora_tools.composites.rotary import ROTARY, repeats
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.shapes import dims, known_equal, rank


def lower(op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
    """The kernel, with a row of its tables for every position of the batch; the standard nodes where it does not fit.

    X is `[batch, heads, positions, width]`, cos and sin are `[batch or 1, 1, positions, width]`.
    """
    x, cos, sin = operands(node)
    if not _fits(x, cos, sin):
        return ROTARY.lower(op, node)
    tables = (_half(op, table) for table in (cos, sin))
    op.builder.graph.opset_imports[MICROSOFT] = 1
    return (op.builder.opset(MICROSOFT, 1).RotaryEmbedding(x, _rows(op, x, cos), *tables),)


def _half(op: OpBuilder, table: ir.Value) -> ir.Value:
    """`[rows, width/2]`: of every row of a table its first half."""
    width = dims(table)[-1]
    assert isinstance(width, int)
    return op.Reshape(op.Slice(table, [0], [width // 2], [-1]), [-1, width // 2])


def _rows(op: OpBuilder, x: ir.Value, cos: ir.Value) -> ir.Value:
    """The rows of a table, int64 `[batch, positions]`: all of them in order, or the same ones for all of the batch."""
    sizes = op.Concat(op.Shape(cos, start=0, end=1), op.Shape(cos, start=2, end=3), axis=0)
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    rows = op.Reshape(op.Range(zero, op.ReduceProd(sizes, keepdims=0), one), sizes, allowzero=1)
    if known_equal(dims(x)[:1], dims(cos)[:1]):
        return rows
    return op.Expand(rows, op.Concat(op.Shape(x, start=0, end=1), op.Shape(x, start=2, end=3), axis=0))


def _fits(x: ir.Value, cos: ir.Value, sin: ir.Value) -> bool:
    """Whether X and the tables are as the kernel wants them: real numbers of 32 bits, by head, and an even width."""
    if x.dtype != ir.DataType.FLOAT or any(v.shape is None or rank(v) != 4 for v in (x, cos, sin)):
        return False
    batch, _, positions, width = dims(x)
    if not isinstance(width, int) or width % 2 or not known_equal(dims(cos), dims(sin)):
        return False
    same = dims(cos)[0] == 1 or known_equal(dims(cos)[:1], [batch])
    return same and known_equal(dims(cos)[1:], [1, positions, width]) and repeats(cos) and repeats(sin)


ROTARY_KERNEL = replace(ROTARY, lower=lower)
