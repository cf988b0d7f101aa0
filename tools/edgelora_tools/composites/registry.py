"""Composites: groups of nodes that deserve a gradient rule of their own, and what they are in standard ONNX.

A composite lives from the normal form to the end of the backward pass, as a node of the domain `edgelora`.
Its file recognises the group, has its rule, and writes the group out again; the graphs on the device are
standard ONNX. A rule for a composite saves memory or time, and its docstring says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.lowering import DOMAIN


@dataclass(frozen=True)
class Composite:
    """`recognise` returns the composite's node in place of the group that ends in a node, or None; `lower` the
    values, in standard ONNX, that replace the outputs of a composite's node."""

    op_type: str
    recognise: Callable[[ir.Node], ir.Node | None]
    lower: Callable[[OpBuilder, ir.Node], Sequence[ir.Value]]


def composite_node(
    op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, float] | None = None, outputs: int = 1
) -> ir.Node:
    """A node of the domain of composites."""
    return ir.node(op_type, inputs, attributes, domain=DOMAIN, num_outputs=outputs)
