"""Reading a node: its operands, and the constants among them."""

from __future__ import annotations

import onnx_ir as ir


def operands(node: ir.Node) -> tuple[ir.Value, ...]:
    """The inputs of an operator that requires all of them, or whose absent ones stand at the end."""
    present = [x for x in node.inputs if x is not None]
    if any(x is None for x in node.inputs[: len(present)]):
        raise ValueError(f"{node.op_type} ({node.name}) leaves out an input that its rule needs")
    return tuple(present)


def operand(node: ir.Node, position: int) -> ir.Value | None:
    """The input at `position`, or None where it is absent."""
    return node.inputs[position] if position < len(node.inputs) else None


def ints_of(x: ir.Value | None) -> list[int] | None:
    """The integers of a constant, or None where they are not known before the graph runs."""
    if x is None or x.const_value is None:
        return None
    return [int(i) for i in x.const_value.numpy().reshape(-1)]


def float_of(x: ir.Value | None) -> float | None:
    """The number of a constant of one element, or None."""
    if x is None or x.const_value is None or x.const_value.size != 1:
        return None
    return float(x.const_value.numpy().reshape(-1)[0])


def refuse(node: ir.Node, what: str) -> ValueError:
    """The error of a rule that does not cover every form of its operator."""
    return ValueError(f"{node.op_type} ({node.name}) {what}: its gradient rule does not cover this")
