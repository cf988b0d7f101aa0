"""Embeddings summed and normalized."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.expansions.registry import expansion
from edgelora_tools.gradients.nodes import operand


@expansion("EmbedLayerNormalization")
def embed_layer_normalization(op: OpBuilder, node: ir.Node) -> tuple[ir.Value, ...]:
    """Y = LayerNormalization(E, G, B), E = words[ids] + positions[p] + segments[s]; then the mask's lengths, and E.

    p is 0, 1, … unless given; segments may be absent. The length of a row of the mask is its sum (int32); without
    mask, 0.
    """
    ids, segment_ids, words, positions, segments, scale, shift, mask, position_ids = (
        operand(node, i) for i in range(9)
    )
    length = op.Shape(ids, start=1, end=2)
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    p = position_ids if position_ids is not None else op.Range(zero, op.Squeeze(length, [0]), one)
    e = op.Add(op.Gather(words, ids), op.Gather(positions, p))
    if segments is not None and segment_ids is not None:
        e = op.Add(e, op.Gather(segments, segment_ids))
    y = op.LayerNormalization(e, scale, shift, axis=-1, epsilon=node.attributes.get_float("epsilon", 1e-12))
    counted = ids if mask is None else mask
    lengths = op.ReduceSum(op.Cast(counted, to=ir.DataType.INT32), [1], keepdims=0)
    return y, (op.Mul(lengths, 0) if mask is None else lengths), e
