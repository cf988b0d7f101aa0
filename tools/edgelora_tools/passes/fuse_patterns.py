"""Recognise composites that deserve a rule of their own: LayerNormalization and both forms of Gelu.

Exporters before opset 17 (20 for Gelu) write them out as primitives. One node instead of nine saves
the backward pass as many reads of memory, and ONNX Runtime has a kernel for each. The order of the
operands and the grouping of the factors do not matter; a node that is read elsewhere too stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora_tools.gradients.nodes import float_of, ints_of

_SQRT_TWO = math.sqrt(2.0)
_SQRT_TWO_OVER_PI = math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715


def fuse_patterns(model: ir.Model) -> ir.Model:
    """Replace written-out LayerNormalization and Gelu by their operators. The opset must be at least 20."""
    for node in list(model.graph):
        fused = next((made for recognise in _PATTERNS if (made := recognise(node)) is not None), None)
        if fused is not None:
            old, new = node.outputs[0], fused.outputs[0]
            new.shape, new.type, new.name = old.shape, old.type, old.name
            fused.metadata_props.update(node.metadata_props)
            model.graph.insert_before(node, fused)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)
    return model


def _gelu(node: ir.Node) -> ir.Node | None:
    """x·Φ(x) = x/2·(1 + erf(x/√2)), or x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (ONNX, Gelu)."""
    if node.op_type not in ("Mul", "Div"):
        return None
    y = node.outputs[0]
    for bell in (factor for factor in _factors(y)[1] if factor is not None):
        for function, argument_of in (("Erf", _argument_of_erf), ("Tanh", _argument_of_tanh)):
            x = argument_of(_inside(bell, function))
            if x is not None and _is_product(y, 0.5, x, bell) and _same_rank(x, y):
                return ir.node("Gelu", [x], {"approximate": "tanh"} if function == "Tanh" else None)
    return None


def _inside(bell: ir.Value, function: str) -> ir.Value | None:
    """v of 1 + function(v)."""
    for one, value in _both_orders(bell, "Add"):
        node = value.producer()
        if _is_number(one, 1.0) and node is not None and node.op_type == function:
            return node.inputs[0]
    return None


def _argument_of_erf(v: ir.Value | None) -> ir.Value | None:
    """x of v = x/√2."""
    return next((x for x in _operands(v) if _is_product(v, 1 / _SQRT_TWO, x)), None)


def _argument_of_tanh(v: ir.Value | None) -> ir.Value | None:
    """x of v = √(2/π)·(x + 0.044715·x³)."""
    for total in _operands(v):
        if _is_product(v, _SQRT_TWO_OVER_PI, total):
            for x, cubic in _both_orders(total, "Add"):
                if _is_product(cubic, _CUBIC, x, x, x):
                    return x
    return None


def _layer_norm(node: ir.Node) -> ir.Node | None:
    """(x − mean(x))/√(var(x) + ε)·scale over the last axis, scale a weight `[width]` (ONNX, LayerNormalization)."""
    for normal, scale in _both_orders(node.outputs[0], "Mul"):
        found = _normalized(normal)
        if found is not None and _is_weight(scale, found[0]):
            return ir.node("LayerNormalization", [found[0], scale], {"axis": -1, "epsilon": found[1]})
    return None


def _normalized(normal: ir.Value) -> tuple[ir.Value, float] | None:
    """(x, ε) of (x − mean(x))/√(mean((x − mean(x))²) + ε)."""
    for deviation, root in [*_both_orders(normal, "Mul", inverse=True), *_in_order(normal, "Div")]:
        x = _centred(deviation)
        for (total,) in _in_order(root, "Sqrt"):
            for variance, epsilon in _both_orders(total, "Add"):
                size, squared = float_of(epsilon), _mean_of(variance)
                if x is not None and size is not None and squared is not None and _is_square(squared, x):
                    return x, size
    return None


def _centred(deviation: ir.Value) -> ir.Value | None:
    """x of x − mean(x)."""
    return next((x for x, mean in _in_order(deviation, "Sub") if _mean_of(mean) is x), None)


def _mean_of(mean: ir.Value) -> ir.Value | None:
    """x of the mean of x over its last axis, which is kept."""
    node = mean.producer()
    if (
        node is None
        or node.op_type != "ReduceMean"
        or len(node.inputs) < 2
        or not node.attributes.get_int("keepdims", 1)
    ):
        return None
    x, axes = node.inputs[0], ints_of(node.inputs[1])
    return x if x is not None and x.shape is not None and axes in ([-1], [len(x.shape) - 1]) else None


def _is_square(squared: ir.Value, x: ir.Value) -> bool:
    """Whether it is (x − mean(x))²."""
    for base, exponent in _in_order(squared, "Pow"):
        if _is_number(exponent, 2.0) and _centred(base) is x:
            return True
    return any(_centred(a) is x and _centred(b) is x for a, b in _in_order(squared, "Mul"))


def _layer_norm_bias(node: ir.Node) -> ir.Node | None:
    """LayerNormalization without bias, plus a weight `[width]`. The residual stream is none."""
    for normal, bias in _both_orders(node.outputs[0], "Add"):
        norm = normal.producer()
        if norm is not None and norm.op_type == "LayerNormalization" and len(norm.inputs) == 2:
            x, axis = norm.inputs[0], norm.attributes.get_int("axis", -1)
            if x is not None and x.shape is not None and axis in (-1, len(x.shape) - 1) and _is_weight(bias, x):
                return ir.node("LayerNormalization", [*norm.inputs, bias], dict(norm.attributes))
    return None


_PATTERNS: tuple[Callable[[ir.Node], ir.Node | None], ...] = (_gelu, _layer_norm, _layer_norm_bias)


def _factors(
    value: ir.Value | None, atoms: tuple[ir.Value, ...] = (), depth: int = 5
) -> tuple[float, list[ir.Value | None]]:
    """`value` as a number times factors: products, quotients by numbers and cubes are opened, `atoms` are not."""
    number = _number(value)
    if number is not None:
        return number, []
    node = None if value is None or value in atoms or not depth else value.producer()
    if node is not None and node.op_type == "Mul":
        (a, left), (b, right) = (_factors(x, atoms, depth - 1) for x in node.inputs)
        return a * b, [*left, *right]
    if node is not None and node.op_type == "Div" and (divisor := _number(node.inputs[1])):
        a, factors = _factors(node.inputs[0], atoms, depth - 1)
        return a / divisor, factors
    if node is not None and node.op_type == "Pow" and _is_number(node.inputs[1], 3.0):
        a, factors = _factors(node.inputs[0], atoms, depth - 1)
        return a**3, factors * 3
    return 1.0, [value]


def _is_product(value: ir.Value | None, number: float, *factors: ir.Value) -> bool:
    size, found = _factors(value, factors)
    return math.isclose(size, number, rel_tol=1e-5) and sorted(map(id, found)) == sorted(map(id, factors))


def _number(value: ir.Value | None) -> float | None:
    """A constant of one element that broadcasts into any tensor."""
    if value is None or value.const_value is None or len(value.const_value.shape) > 1:
        return None
    return float_of(value)


def _is_number(value: ir.Value | None, number: float) -> bool:
    found = _number(value)
    return found is not None and math.isclose(found, number, rel_tol=1e-5)


def _is_weight(value: ir.Value, x: ir.Value) -> bool:
    """Whether `value` is a constant of the shape of x's last axis."""
    return value.const_value is not None and x.shape is not None and list(value.const_value.shape) == [x.shape[-1]]


def _same_rank(x: ir.Value, y: ir.Value) -> bool:
    return x.shape is None or y.shape is None or len(x.shape) == len(y.shape)


def _operands(value: ir.Value | None) -> list[ir.Value]:
    node = None if value is None else value.producer()
    return [] if node is None else [x for x in node.inputs if x is not None]


def _in_order(value: ir.Value, op_type: str) -> list[tuple[ir.Value, ...]]:
    """The operands, if `value` comes from this operator."""
    node = value.producer()
    return [tuple(_operands(value))] if node is not None and node.op_type == op_type else []


def _both_orders(value: ir.Value, op_type: str, inverse: bool = False) -> list[tuple[ir.Value, ...]]:
    """The two operands in both orders; with `inverse`, where the second is a Reciprocal, what it is of."""
    pairs = [order for a, b in _in_order(value, op_type) for order in ((a, b), (b, a))]
    return [(a, x) for a, b in pairs for (x,) in _in_order(b, "Reciprocal")] if inverse else pairs
