"""Only what the loss reads is computed: Rows move up through row-wise operators to where rows are mixed.

A loss reads the first token of each sample, or the tokens that have a label. Rows(f(X)) = f(Rows(X)) for every
operator f that treats each row alone, so that the head, and of the last layer all but what attention reads, are
computed of those rows only (docs/decisions/0021).
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.nodes import ints_of, operands
from edgelora_tools.gradients.shapes import annotate, dims, rank, size_of
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.queries import attend_less
from edgelora_tools.passes.row_wise import has_rows_of, put_on_rows, row_inputs, viewed
from edgelora_tools.passes.rows import Places, is_rows, places_of, rows_of, token_mask


def slice_early(model: ir.Model) -> ir.Model:
    """Move every Rows up in place, those of the first token among them; shapes must be known (measure_shapes.py)."""
    op = GraphBuilder(free_names(model.graph)).op
    for node in list(model.graph):
        _take_one_token(op, model, node)
    common.TopologicalSortPass()(model)
    made: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
    for node in reversed(list(model.graph)):
        if any(y.uses() or y.is_graph_output() for y in node.outputs):
            _move_up(op, node, made)
        else:
            model.graph.remove(node, safe=True)
    common.TopologicalSortPass()(model)
    return model


def _take_one_token(op: OpBuilder, model: ir.Model, node: ir.Node) -> None:
    """Gather(X `[batch, length, width]`, i, axis 1), one token of each sample, as Rows."""
    x = node.inputs[0] if node.op_type == "Gather" and node.domain in ("", "ai.onnx") else None
    if x is None or x.shape is None or rank(x) != 3 or node.attributes.get_int("axis", 0) not in (1, -2):
        return
    place = ints_of(node.inputs[1])
    index, tokens, mask = node.inputs[1], dims(x)[:2], token_mask(model)
    if place is None or len(place) != 1 or index is None or index.shape is None or rank(index) or None in tokens:
        return
    before = x.producer()
    movable = before is not None and row_inputs(before, lambda v: has_rows_of(v, before)) is not None
    if not (movable and len(x.uses()) == 1) and (mask is None or tokens != dims(mask)):
        return
    length = op.Squeeze(size_of(op, x, 1), [0])
    one = op.Equal(op.Range(0, length, 1), place[0] if place[0] >= 0 else op.Add(length, place[0]))
    taking = op.Expand(one, op.Concat(size_of(op, x, 0), size_of(op, x, 1), axis=0))
    (y,) = node.outputs
    taken = annotate(rows_of(op, x, places_of(op, taking, tokens, tokens[0])), y)
    if y.is_graph_output():
        taken.name, y.name = y.name, None
    y.replace_all_uses_with(taken, replace_graph_outputs=True)


def _move_up(op: OpBuilder, node: ir.Node, made: dict[tuple[ir.Value, ir.Value], ir.Value]) -> None:
    """Let the node compute only the rows that are read of it; `made` has what is taken of each value."""
    readers = list(dict.fromkeys(reader for y in node.outputs for reader, _ in y.uses()))
    if any(y.is_graph_output() for y in node.outputs) or not all(is_rows(r) for r in readers):
        return
    if len({tuple(r.inputs[1:]) for r in readers}) != 1:
        return
    _, kept, places = operands(readers[0])
    y, graph = node.outputs[0], op.builder.graph
    source = viewed(node)
    if source is not None:
        for reader in readers:
            reader.replace_input_with(0, source)
        graph.remove(node, safe=True)
        return
    merged = attend_less(op, node, Places(kept, places))
    if merged is not None:
        y = merged
    else:
        positions = row_inputs(node, lambda x: has_rows_of(x, node))
        if positions is None:
            return
        for i in positions:
            x = node.inputs[i]
            assert x is not None
            if (x, kept) not in made:
                made[x, kept] = rows_of(op, x, Places(kept, places))
            node.replace_input_with(i, made[x, kept])
        put_on_rows(node, dims(kept)[0] or "?")
    for reader in readers:
        (taken,) = reader.outputs
        if taken.is_graph_output():
            y.name, taken.name = taken.name, None
        taken.replace_all_uses_with(y, replace_graph_outputs=True)
        graph.remove(reader, safe=True)
