"""A graph with a cache of keys and values, and the same graph at the first token, where the cache is empty."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.lowering import emit_before
from edgelora_tools.passes.free_names import free_names

PAST, PRESENT = "past_key_values.", "present."


def sizes_from_tokens(model: ir.Model) -> ir.Model:
    """Ask no past key or value for its size: `past` is what `attention_mask` is longer than `input_ids`; in place."""
    ids, mask = (next(x for x in model.graph.inputs if x.name == name) for name in ("input_ids", "attention_mask"))
    _replace_sizes(model, lambda op: op.Sub(op.Shape(mask, start=1, end=2), op.Shape(ids, start=1, end=2)))
    common.NameFixPass()(model)
    return model


def without_cache(model: ir.Model) -> ir.Model:
    """Leave out past keys and values, and those of the present among the outputs; in place.

    Every Concat of past and present becomes the present, and the mask is as long as the tokens.
    """
    graph = model.graph
    ids, mask = (next(x for x in graph.inputs if x.name == name) for name in ("input_ids", "attention_mask"))
    assert ids.shape is not None
    mask.shape = ir.Shape(list(ids.shape))
    past = [x for x in graph.inputs if str(x.name).startswith(PAST)]
    _replace_sizes(model, lambda op: op.Constant(value_ints=[0]))
    graph.outputs[:] = [y for y in graph.outputs if not str(y.name).startswith(PRESENT)]
    for x in past:
        for node, _ in tuple(x.uses()):
            (new,) = [other for other in node.inputs if other is not x]
            assert node.op_type == "Concat" and new is not None
            node.outputs[0].replace_all_uses_with(new)
            graph.remove(node, safe=True)
        graph.inputs.remove(x)
    _no_past(model, ids, mask)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    return model


def _replace_sizes(model: ir.Model, past_size: Callable[[OpBuilder], ir.Value]) -> None:
    """Let no Shape read a past key or value: its batch is that of the tokens, its slots `past_size`, an int64 `[1]`."""
    graph = model.graph
    op, ids = GraphBuilder(free_names(graph)).op, next(x for x in graph.inputs if x.name == "input_ids")
    for x in graph.inputs:
        if not str(x.name).startswith(PAST):
            continue
        assert x.shape is not None
        heads, size = (int(str(x.shape[axis])) for axis in (1, 3))
        for node, _ in tuple(x.uses()):
            if node.op_type != "Shape":
                continue
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)

            def emit(start: int = start, end: int = end, heads: int = heads, size: int = size) -> ir.Value:
                makers = (
                    lambda: op.Shape(ids, start=0, end=1),
                    lambda: op.Constant(value_ints=[heads]),
                    lambda: past_size(op),
                    lambda: op.Constant(value_ints=[size]),
                )
                parts = [make() for make in makers[start:end]]
                return op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]

            made = emit_before(graph, node, emit)
            made.dtype, made.shape = ir.DataType.INT64, ir.Shape([end - start])
            node.outputs[0].replace_all_uses_with(made)
            graph.remove(node, safe=True)


def _no_past(model: ir.Model, ids: ir.Value, mask: ir.Value) -> None:
    """What the mask is longer than the tokens is 0."""
    graph = model.graph
    for node, i in tuple(mask.uses()):
        if node.op_type == "Shape":
            node.replace_input_with(i, ids)
    common.CommonSubexpressionEliminationPass()(model)
    op = GraphBuilder(free_names(graph)).op
    for node in list(graph):
        if node.op_type == "Sub" and node.inputs[0] is node.inputs[1] and node.inputs[0] is not None:
            one = node.inputs[0].shape is not None and len(node.inputs[0].shape) == 1
            zero = emit_before(
                graph, node, lambda one=one: op.Constant(value_ints=[0]) if one else op.Constant(value_int=0)
            )
            node.outputs[0].replace_all_uses_with(zero)
            graph.remove(node, safe=True)
