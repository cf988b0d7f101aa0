"""Write operators out as those that have rules: ONNX Runtime's own, and those that ONNX defines by a function.

What an operator stands for is in `edgelora_tools.expansions`, or in ONNX's definition of it. A form that an
expansion does not cover stays; the node then carries the reason, which the missing rule's message shows.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.expansions import EXPANSIONS
from edgelora_tools.expansions.registry import REASON
from edgelora_tools.gradients import NON_DIFFERENTIABLE, RULES, key_of
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.function_bodies import call_body, has_body
from edgelora_tools.runner import open_session

_STANDARD = ("", "ai.onnx")
_TYPES = {f"tensor({name})": dtype for name, dtype in {
    "float": ir.DataType.FLOAT, "double": ir.DataType.DOUBLE, "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16, "int64": ir.DataType.INT64, "int32": ir.DataType.INT32,
    "int16": ir.DataType.INT16, "int8": ir.DataType.INT8, "uint64": ir.DataType.UINT64,
    "uint32": ir.DataType.UINT32, "uint16": ir.DataType.UINT16, "uint8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL, "string": ir.DataType.STRING,
}.items()}  # fmt: skip


def expand(model: ir.Model) -> ir.Model:
    """Replace every node that has an expansion and no rule, until none is left. The opset must be at least 21."""
    refused: set[ir.Node] = set()
    for body in model.graphs():
        body.opset_imports.setdefault("", model.graph.opset_imports[""])
    while any(_expands(node, refused) for node in model.graph.all_nodes()):
        learn_types(model)
        root = GraphBuilder(free_names(model.graph))
        for graph in list(model.graphs()):
            builder = root if graph is model.graph else GraphBuilder(graph, parent=root)
            for node in list(graph):
                if _expands(node, refused) and not _replace(model, builder, node):
                    refused.add(node)
        common.InlinePass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.TopologicalSortPass()(model)
        common.RemoveUnusedNodesPass()(model)
        common.NameFixPass()(model)
    return model


def foreign(node: ir.Node) -> bool:
    """Whether ONNX does not define the node's operator, of whatever opset."""
    return node.domain not in _STANDARD or (node.domain, node.op_type) in EXPANSIONS


def learn_types(model: ir.Model) -> None:
    """Give the main graph's values the types and shapes that ONNX Runtime infers, where these are not known.

    ONNX infers nothing for operators that it does not define. A model that does not load is left as it is.
    """
    unknown = [y for node in model.graph for y in node.outputs if y.name and (y.shape is None or y.dtype is None)]
    if not unknown:
        return
    probed = model.clone()
    wanted = {y.name for y in unknown}
    probed.graph.outputs[:] = [y for node in probed.graph for y in node.outputs if y.name in wanted]
    try:
        with open_session(probed, optimize=False) as session:
            found = {y.name: y for y in session.get_outputs()}
    except Exception:  # ONNX Runtime raises a class of its own per status; what cannot run is reported later
        return
    for value in unknown:
        known = found.get(value.name)
        if known is not None and known.type in _TYPES:
            value.dtype = _TYPES[known.type]
            if known.shape:  # none is a scalar's, or an unknown one
                value.shape = ir.Shape(known.shape)


def _expands(node: ir.Node, refused: set[ir.Node]) -> bool:
    key = key_of(node)
    if node in refused or key in RULES or key in NON_DIFFERENTIABLE:
        return False
    return key in EXPANSIONS or has_body(node)


def _replace(model: ir.Model, builder: GraphBuilder, node: ir.Node) -> bool:
    """Put the expansion in the node's place; returns whether there is one for this form."""
    graph, initializers = builder.graph, model.graph.initializers
    before, constants = len(graph), set(initializers)
    try:
        if key_of(node) not in EXPANSIONS:
            call_body(model, node)
            return True
        made = EXPANSIONS[key_of(node)](builder.op, node)
    except ValueError as reason:  # NotCovered, or a rank or type that is not known
        node.metadata_props[REASON] = str(reason)
        return False
    for new in list(graph)[before:]:
        new.metadata_props.clear()
        new.metadata_props.update(node.metadata_props)
    for name in set(initializers) - constants:
        initializers[name].name = f"{node.name or node.op_type}.{name}"
    results = [made] if isinstance(made, ir.Value) else list(made)
    for old, new in zip(node.outputs, [*results, *[None] * len(node.outputs)], strict=False):
        if old.uses() or old.is_graph_output():
            assert new is not None, f"the expansion of {node.op_type} lacks an output"
            _take_place(builder, old, new)
    graph.remove(node, safe=True)
    return True


def _take_place(builder: GraphBuilder, old: ir.Value, new: ir.Value) -> None:
    if new.producer() is None or new.is_graph_output():
        new = builder.op.Identity(new)
    new.type = old.type or new.type
    new.shape = old.shape or new.shape
    new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
