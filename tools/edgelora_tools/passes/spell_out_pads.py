"""Pads name all axes: ONNX Runtime's transpose optimizer permutes the pads of a Pad and overlooks its `axes`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgelora_tools.gradients.shapes import rank


def spell_out_pads(model: ir.Model) -> None:
    """Every Pad with constant axes, of a value whose rank is known, gets pads for all of its axes instead."""
    for graph in model.graphs():
        for node in list(graph):
            if node.op_type == "Pad" and node.domain == "" and len(node.inputs) > 3 and node.inputs[3] is not None:
                x, pads, value, axes = node.inputs[:4]
                given = ir.convenience.get_const_tensor(axes) if axes is not None else None
                if x is not None and pads is not None and given is not None and x.shape is not None:
                    made = _all_pads(pads, [int(a) % rank(x) for a in given.numpy()], rank(x))
                    graph.insert_before(node, made)
                    inputs = [x, made[-1].outputs[0], *([value] if value is not None else [])]
                    whole = ir.node("Pad", inputs, dict(node.attributes), name=node.name)
                    _replace(graph, node, whole)


def _all_pads(pads: ir.Value, axes: Sequence[int], count: int) -> list[ir.Node]:
    """Nodes whose last one's output is [before of every axis, after of every axis], zero for those not in `axes`."""
    known = ir.convenience.get_const_tensor(pads)
    places = [*axes, *(a + count for a in axes)]
    if known is not None:
        spelled = np.zeros(2 * count, np.int64)
        spelled[places] = known.numpy()
        return [_constant(spelled)]
    where, zeros = _constant(np.asarray(places, np.int64)), _constant(np.zeros(2 * count, np.int64))
    scattered = ir.node("ScatterElements", [zeros.outputs[0], where.outputs[0], pads], {"axis": 0})
    return [where, zeros, scattered]


def _constant(array: np.ndarray) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(array)})


def _replace(graph: ir.Graph | ir.Function, node: ir.Node, by: ir.Node) -> None:
    old, new = node.outputs[0], by.outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    graph.insert_before(node, by)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
