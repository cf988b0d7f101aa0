"""Reading a graph backwards from a value: what the recognisers of composites share.

The order of operands and the grouping of factors do not matter to them.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgelora_tools.gradients.nodes import float_of, ints_of

Value = ir.Value | None


def factors_of(value: Value, atoms: tuple[ir.Value, ...] = (), depth: int = 5) -> tuple[float, list[Value]]:
    """`value` as a number times factors: products, quotients by numbers and cubes are opened, `atoms` are not."""
    if (number := number_of(value)) is not None:
        return number, []
    node = None if value is None or value in atoms or not depth else value.producer()
    if node is not None and node.op_type == "Mul":
        (a, left), (b, right) = (factors_of(x, atoms, depth - 1) for x in node.inputs)
        return a * b, [*left, *right]
    if node is not None and node.op_type == "Div" and (divisor := number_of(node.inputs[1])):
        a, factors = factors_of(node.inputs[0], atoms, depth - 1)
        return a / divisor, factors
    if node is not None and node.op_type == "Pow" and is_number(node.inputs[1], 3.0):
        a, factors = factors_of(node.inputs[0], atoms, depth - 1)
        return a**3, factors * 3
    return 1.0, [value]


def is_product(value: Value, number: float, *factors: ir.Value) -> bool:
    """Whether `value` is this number times these factors."""
    size, found = factors_of(value, factors)
    return math.isclose(size, number, rel_tol=1e-5) and sorted(map(id, found)) == sorted(map(id, factors))


def number_of(value: Value) -> float | None:
    """A constant of one element that broadcasts into any tensor, or None."""
    if value is None or value.const_value is None or len(value.const_value.shape) > 1:
        return None
    return float_of(value)


def is_number(value: Value, number: float) -> bool:
    """Whether `value` is the constant `number`."""
    found = number_of(value)
    return found is not None and math.isclose(found, number, rel_tol=1e-5)


def is_weight(value: ir.Value, x: ir.Value) -> bool:
    """Whether `value` is a constant of the shape of x's last axis."""
    return value.const_value is not None and x.shape is not None and list(value.const_value.shape) == [x.shape[-1]]


def same_rank(x: ir.Value, y: ir.Value) -> bool:
    """Whether the ranks are equal, as far as they are known."""
    return x.shape is None or y.shape is None or len(x.shape) == len(y.shape)


def made_by(value: Value, *op_types: str) -> ir.Node | None:
    """The standard node of one of these operators that makes `value`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types and node.domain in ("", "ai.onnx") else None


def inputs_of(value: Value) -> list[ir.Value]:
    """The inputs, as far as they are there, of the node that makes `value`."""
    node = None if value is None else value.producer()
    return [] if node is None else [x for x in node.inputs if x is not None]


def in_order(value: Value, op_type: str) -> list[tuple[ir.Value, ...]]:
    """The operands, if `value` comes from this operator."""
    return [tuple(inputs_of(value))] if made_by(value, op_type) is not None else []


def both_orders(value: Value, op_type: str, inverse: bool = False) -> list[tuple[ir.Value, ...]]:
    """The two operands in both orders; with `inverse`, where the second is a Reciprocal, what it is of."""
    pairs = [order for pair in in_order(value, op_type) if len(pair) == 2 for order in (pair, pair[::-1])]
    return [(a, x) for a, b in pairs for (x,) in in_order(b, "Reciprocal")] if inverse else pairs


def mean_of(mean: Value) -> ir.Value | None:
    """x of the mean of x over its last axis, which is kept."""
    node = made_by(mean, "ReduceMean")
    if node is None or len(node.inputs) < 2 or not node.attributes.get_int("keepdims", 1):
        return None
    x, axes = node.inputs[0], ints_of(node.inputs[1])
    return x if x is not None and x.shape is not None and axes in ([-1], [len(x.shape) - 1]) else None
