"""What an adapter method is to the compiler: tensors, a body in the graph, a gradient rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Protocol

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import InsertionPoint, TensorSpec

DOMAIN = "edgelora"


class AdapterMethod(Protocol):
    """One member of the adapter family. Its node's gradient rule stands in the same file.

    `name` is PEFT's `peft_type`. Merging into the base belongs to the file too, where it is defined.
    """

    name: str

    def tensors(self, point: InsertionPoint) -> tuple[TensorSpec, ...]:
        """The graph inputs that hold the adapter at `point`."""
        ...

    def delta(self, op: OpBuilder, product: ir.Node, x: ir.Value, tensors: Sequence[ir.Value]) -> ir.Value:
        """Emit what is added to the output of the frozen `product`, whose input is `x`."""
        ...

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        """The method's node in standard ONNX: replacements for the node's outputs."""
        ...


class Lowered(Protocol):
    """What stands for standard ONNX in a node of the domain `edgelora`: a method or a composite."""

    @property
    def lower(self) -> Callable[[OpBuilder, ir.Node], Sequence[ir.Value]]:
        """Emit the node's body: replacements for its outputs."""
        ...


def lower_methods(graph: ir.Graph, op: OpBuilder, methods: Mapping[str, Lowered]) -> None:
    """Replace every node of the domain `edgelora`, by operator, by its body in standard ONNX."""
    for node in list(graph):
        if node.domain != DOMAIN:
            continue
        method = methods[node.op_type]
        last = graph[-1]
        replacements = method.lower(op, node)
        emitted = list(takewhile(lambda n: n is not last, reversed(graph)))[::-1]  # noqa: B023
        graph.remove(emitted)
        graph.insert_before(node, emitted)
        for old, new in zip(node.outputs, replacements, strict=True):
            new.shape, new.type = old.shape, old.type
            if old.is_graph_output():
                new.name = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
