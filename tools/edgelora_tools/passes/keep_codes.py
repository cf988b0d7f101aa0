"""Weights that are codes stay codes: one DequantizeLinear each, after a Gather rather than before it.

ONNX Runtime folds constants when it loads a graph, but not a DequantizeLinear: the codes are what lies in
memory, and a weight is real only while a step uses it (docs/decisions/0009). Outputs do not change by a bit:
the axis of the scales is counted from the end, because ONNX Runtime makes a product of weights with scales along
axis 1 one that rounds the activations too (MatMulNBits of accuracy level 4), and does not do so along axis -1.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.frozen import decodes
from edgelora_tools.passes.free_names import free_names

_SIGNED = {
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT16,
    ir.DataType.UINT16,
}


def keep_codes(model: ir.Model) -> ir.Model:
    """Rewrite s·Cast(Q), the transpose and the Gather of a dequantized initializer, in place."""
    op = GraphBuilder(free_names(model.graph)).op
    for node in list(model.graph):
        made = _dequantized(op, node) or _transposed(op, node) or _gathered(op, node)
        if made is not None:
            (y,) = node.outputs
            made.name, y.name = y.name, None
            made.shape, made.type = y.shape, y.type
            y.replace_all_uses_with(made, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    return model


def _dequantized(op: OpBuilder, node: ir.Node) -> ir.Value | None:
    """s·Cast(Q), s one number or one for each slice of an axis, as DequantizeLinear(Q, s)."""
    if node.op_type != "Mul":
        return None
    for q, s in (node.inputs, node.inputs[::-1]):
        cast = None if q is None else q.producer()
        if cast is None or cast.op_type != "Cast" or not decodes(cast) or s is None or s.const_value is None:
            continue
        codes = cast.inputs[0]
        assert codes is not None and codes.const_value is not None
        shape, scale = codes.const_value.shape.numpy(), s.const_value.numpy()
        axes = [axis for axis, d in enumerate(scale.shape, len(shape) - scale.ndim) if d != 1]
        if codes.dtype not in _SIGNED or scale.dtype != np.float32 or scale.ndim > len(shape) or len(axes) > 1:
            continue
        axis = axes[0] if axes else len(shape) - 1
        if axes and scale.size != shape[axis]:
            continue
        along = np.broadcast_to(scale.reshape(-1), shape[axis]).copy()
        kept = op.builder.initializer(ir.tensor(along, name=f"{codes.name}.scale"))
        return op.DequantizeLinear(codes, kept, axis=axis - len(shape))
    return None


def _dequantizer(x: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes `x` of many codes, all of its inputs initializers."""
    node = None if x is None else x.producer()
    if node is None or node.op_type != "DequantizeLinear" or not decodes(node):
        return None
    return node if all(y is None or y.const_value is not None for y in node.inputs) else None


def _transposed(op: OpBuilder, node: ir.Node) -> ir.Value | None:
    """The transpose of dequantized codes as the transposed codes, dequantized."""
    source = _dequantizer(node.inputs[0]) if node.op_type == "Transpose" else None
    if source is None:
        return None
    rank = len(source.inputs[0].const_value.shape)  # pyright: ignore[reportOptionalMemberAccess]
    perm = list(node.attributes.get_ints("perm", None) or range(rank)[::-1])
    axis = source.attributes.get_int("axis", 1)
    axis = perm.index(axis % rank) - (rank if axis < 0 else 0)
    turned = []
    for x in source.inputs:
        tensor = None if x is None else x.const_value
        if x is not None and tensor is not None and len(tensor.shape) == rank:
            array = np.ascontiguousarray(tensor.numpy().transpose(perm))
            x = op.builder.initializer(ir.tensor(array, dtype=tensor.dtype, name=f"{x.name}.transposed"))
        turned.append(x)
    rest = {k: v for k, v in source.attributes.items() if k != "axis"}
    return op.DequantizeLinear(*turned, axis=axis, **rest)


def _gathered(op: OpBuilder, node: ir.Node) -> ir.Value | None:
    """Rows of dequantized codes as rows of the codes, dequantized: a table is never real as a whole."""
    source = _dequantizer(node.inputs[0]) if node.op_type == "Gather" else None
    if source is None or source.attributes.get_int("block_size", 0):
        return None  # nor are codes of four bits gathered below: ONNX Runtime's Gather takes none
    codes, scale, *zeros = source.inputs
    assert codes is not None and scale is not None and codes.const_value is not None and scale.const_value is not None
    rank, indices = len(codes.const_value.shape), node.inputs[1]
    four_bits = codes.dtype in (ir.DataType.INT4, ir.DataType.UINT4)
    if four_bits or indices is None or indices.shape is None or node.attributes.get_int("axis", 0) % rank:
        return None
    rows = op.Gather(codes, indices)
    rows.dtype = codes.dtype
    if math.prod(scale.const_value.shape.numpy()) == 1:
        return op.DequantizeLinear(rows, scale, *zeros)
    axis = source.attributes.get_int("axis", 1) % rank
    if axis:
        return op.DequantizeLinear(rows, scale, *zeros, axis=axis + len(indices.shape) - 1)
    if zeros:
        return None
    column = scale.const_value.numpy().reshape([-1] + [1] * (rank - 1))
    kept = op.builder.initializer(ir.tensor(column, name=f"{codes.name}.scales"))
    return op.Mul(op.Cast(rows, to=ir.DataType.FLOAT), op.Gather(kept, indices))
