"""The table of expansions: an operator outside the normal form -> the standard operators that it stands for.

An expansion is written once per operator and registered by name, like a gradient rule:

    @expansion("BiasGelu", domain="com.microsoft")
    def bias_gelu(op, node):
        \"\"\"Y = Gelu(X + B).\"\"\"
        x, b = operands(node)
        return op.Gelu(op.Add(x, b))

It emits ONNX of opset 21 and returns the values that replace the node's outputs: one value, or one per output
(`None` for an output that nothing reads; those left off at the end are `None`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

MICROSOFT = "com.microsoft"
REASON = "edgelora.not_expanded"
"""The metadata of a node that stayed as it is: why."""

Expansion = Callable[[OpBuilder, ir.Node], ir.Value | Sequence[ir.Value | None]]

EXPANSIONS: dict[tuple[str, str], Expansion] = {}


def expansion(*op_types: str, domain: str = MICROSOFT) -> Callable[[Expansion], Expansion]:
    """Register the decorated expansion for these operators of `domain`."""

    def register(function: Expansion) -> Expansion:
        for op_type in op_types:
            if (domain, op_type) in EXPANSIONS:
                raise ValueError(f"a second expansion of {domain or 'ai.onnx'}::{op_type}")
            EXPANSIONS[domain, op_type] = function
        return function

    return register


class NotCovered(ValueError):
    """A form of an operator that its expansion does not cover. The node stays as it is."""


def uncovered(what: str) -> NotCovered:
    """The error of an expansion that does not cover every form of its operator: `what` completes "the node …"."""
    return NotCovered(f"{what}: its expansion does not cover this")


def is_read(node: ir.Node, position: int) -> bool:
    """Whether anything reads the output at `position`."""
    if position >= len(node.outputs) or not node.outputs[position].name:
        return False
    y = node.outputs[position]
    return bool(y.uses()) or y.is_graph_output()


def called(y: ir.Value, name: str | None) -> ir.Value:
    """Name the node that makes `y`: a product's name is its insertion point's where its weight has none."""
    node = y.producer()
    assert node is not None
    node.name = name
    return y
