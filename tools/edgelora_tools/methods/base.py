"""What an adapter method is to the compiler: tensors, a body in the graph, a gradient rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import InsertionPoint, TensorSpec


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
