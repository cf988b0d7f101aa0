"""Nodes of the domain `edgelora`, adapters and composites, become standard ONNX when the backward pass is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Protocol, TypeVar

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder

DOMAIN = "edgelora"

T = TypeVar("T")


class Lowered(Protocol):
    """What a node of the domain stands for: an adapter method or a composite."""

    @property
    def lower(self) -> Callable[[OpBuilder, ir.Node], Sequence[ir.Value]]:
        """Emit the node's body: replacements for its outputs."""
        ...


def emit_before(graph: ir.Graph, node: ir.Node, emit: Callable[[], T]) -> T:
    """Let a builder emit nodes in the place of `node`, not at the end of the graph; returns what `emit` does."""
    last = graph[-1]
    made = emit()
    emitted = list(takewhile(lambda n: n is not last, reversed(graph)))[::-1]
    graph.remove(emitted)
    graph.insert_before(node, emitted)
    return made


def lower_nodes(graph: ir.Graph, op: OpBuilder, meanings: Mapping[str, Lowered]) -> None:
    """Replace every node of the domain, by operator, by its body in standard ONNX, also inside of bodies."""
    for node in list(graph):
        if node.domain != DOMAIN:
            continue
        replacements = emit_before(graph, node, partial(meanings[node.op_type].lower, op, node))
        for old, new in zip(node.outputs, replacements, strict=True):
            new.shape, new.type = old.shape, old.type
            if old.is_graph_output():
                new.name = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        _forget_bodies(node)
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph()
                lower_nodes(body, GraphBuilder(body, parent=op.builder).op, meanings)


def _forget_bodies(node: ir.Node) -> None:
    """What stands outside of the bodies of a node that is gone is no longer read by them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                for position in range(len(inner.inputs)):
                    inner.replace_input_with(position, None)
