"""Pad and Resize name all axes: ONNX Runtime's transpose optimizer permutes their numbers and overlooks `axes`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgelora_tools.gradients.shapes import dims, rank


def spell_out_axes(model: ir.Model) -> None:
    """Every Pad and Resize with constant axes, of a value whose rank is known, gets pads, scales or sizes of all axes.

    A Resize that keeps the aspect ratio or reads a part of its input stays: there the axes mean more.
    """
    for graph in model.graphs():
        for node in list(graph):
            whole = _pad(node) if node.op_type == "Pad" else _resize(node) if node.op_type == "Resize" else []
            if whole and node.domain == "":
                _replace(graph, node, whole)


def _pad(node: ir.Node) -> list[ir.Node]:
    """Nodes whose last is the Pad of all axes; none if it is that already."""
    x, pads, value, axes = [*node.inputs, None, None, None, None][:4]
    given = None if axes is None else ir.convenience.get_const_tensor(axes)
    if x is None or pads is None or given is None or x.shape is None:
        return []
    made = _all_pads(pads, _positive(given.numpy(), x), rank(x))
    inputs = [x, made[-1].outputs[0], *([value] if value is not None else [])]
    return [*made, ir.node("Pad", inputs, dict(node.attributes), name=node.name)]


def _all_pads(pads: ir.Value, axes: Sequence[int], count: int) -> list[ir.Node]:
    """Nodes whose last one's output is [before of every axis, after of every axis], zero for those not in `axes`."""
    places = [*axes, *(a + count for a in axes)]
    return _spread(pads, places, np.zeros(2 * count, np.int64))


def _resize(node: ir.Node) -> list[ir.Node]:
    """Nodes whose last is the Resize of all axes; none if it is that already, or must stay.

    Where sizes are given, and those before and after are known, the scales stand for them that the operator makes of
    them: after / before in float32, wherever that gives these sizes again.
    """
    x, roi, scales, sizes = [*node.inputs, None, None, None, None][:4]
    axes = node.attributes.get_ints("axes", None)
    stays = node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch" or roi is not None
    if axes is None or stays or x is None or x.shape is None:
        return []
    places, how = _positive(axes, x), {name: a for name, a in node.attributes.items() if name != "axes"}
    if sizes is None:
        assert scales is not None, "a Resize has scales or sizes"
        made = _spread(scales, places, np.ones(rank(x), np.float32))
    elif (factors := _factors(x, sizes, places)) is not None:
        made = [_constant(factors)]
    else:
        before = ir.node("Shape", [x])
        made = [before, *_spread(sizes, places, before.outputs[0])]
        return [*made, ir.node("Resize", [x, None, None, made[-1].outputs[0]], how, name=node.name)]
    return [*made, ir.node("Resize", [x, None, made[-1].outputs[0]], how, name=node.name)]


def _factors(x: ir.Value, sizes: ir.Value, places: Sequence[int]) -> NDArray[np.float32] | None:
    """The scales of all axes that say the same as these sizes; None where something is unknown or rounding differs."""
    known = ir.convenience.get_const_tensor(sizes)
    before = [dims(x)[place] for place in places]
    if known is None or not all(isinstance(size, int) and size for size in before):
        return None
    after, old = known.numpy().astype(np.int64), np.asarray(before, np.int64)
    found = after.astype(np.float32) / old.astype(np.float32)
    if not np.array_equal(np.floor(old.astype(np.float32) * found).astype(np.int64), after):
        return None
    factors = np.ones(rank(x), np.float32)
    factors[list(places)] = found
    return factors


def _positive(axes: Sequence[int] | NDArray[np.int64], x: ir.Value) -> list[int]:
    return [int(axis) % rank(x) for axis in axes]


def _spread(given: ir.Value, places: Sequence[int], into: NDArray[np.generic] | ir.Value) -> list[ir.Node]:
    """Nodes whose last one's output is `into` with what is given at these places."""
    known = ir.convenience.get_const_tensor(given)
    if known is not None and isinstance(into, np.ndarray):
        spelled = into.copy()
        spelled[list(places)] = known.numpy()
        return [_constant(spelled)]
    where = _constant(np.asarray(places, np.int64))
    whole = [_constant(into)] if isinstance(into, np.ndarray) else []
    data = whole[0].outputs[0] if whole else into
    assert isinstance(data, ir.Value)
    return [*whole, where, ir.node("ScatterElements", [data, where.outputs[0], given], {"axis": 0})]


def _constant(array: NDArray[np.generic]) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(array)})


def _replace(graph: ir.Graph | ir.Function, node: ir.Node, by: Sequence[ir.Node]) -> None:
    """Put these nodes in the place of one, whose result is the last one's."""
    old, new = node.outputs[0], by[-1].outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    graph.insert_before(node, by)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
