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

from edgelora_tools.gradients.nodes import float_of
from edgelora_tools.passes.matching import (
    both_orders,
    factors_of,
    in_order,
    inputs_of,
    is_number,
    is_product,
    is_weight,
    mean_of,
    same_rank,
)

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
    for bell in (factor for factor in factors_of(y)[1] if factor is not None):
        for function, argument_of in (("Erf", _argument_of_erf), ("Tanh", _argument_of_tanh)):
            x = argument_of(_inside(bell, function))
            if x is not None and is_product(y, 0.5, x, bell) and same_rank(x, y):
                return ir.node("Gelu", [x], {"approximate": "tanh"} if function == "Tanh" else None)
    return None


def _inside(bell: ir.Value, function: str) -> ir.Value | None:
    """v of 1 + function(v)."""
    for one, value in both_orders(bell, "Add"):
        node = value.producer()
        if is_number(one, 1.0) and node is not None and node.op_type == function:
            return node.inputs[0]
    return None


def _argument_of_erf(v: ir.Value | None) -> ir.Value | None:
    """x of v = x/√2."""
    return next((x for x in inputs_of(v) if is_product(v, 1 / _SQRT_TWO, x)), None)


def _argument_of_tanh(v: ir.Value | None) -> ir.Value | None:
    """x of v = √(2/π)·(x + 0.044715·x³)."""
    for total in inputs_of(v):
        if is_product(v, _SQRT_TWO_OVER_PI, total):
            for x, cubic in both_orders(total, "Add"):
                if is_product(cubic, _CUBIC, x, x, x):
                    return x
    return None


def _layer_norm(node: ir.Node) -> ir.Node | None:
    """(x − mean(x))/√(var(x) + ε)·scale over the last axis, scale a weight `[width]` (ONNX, LayerNormalization)."""
    for normal, scale in both_orders(node.outputs[0], "Mul"):
        found = _normalized(normal)
        if found is not None and is_weight(scale, found[0]):
            return ir.node("LayerNormalization", [found[0], scale], {"axis": -1, "epsilon": found[1]})
    return None


def _normalized(normal: ir.Value) -> tuple[ir.Value, float] | None:
    """(x, ε) of (x − mean(x))/√(mean((x − mean(x))²) + ε)."""
    for deviation, root in [*both_orders(normal, "Mul", inverse=True), *in_order(normal, "Div")]:
        x = _centred(deviation)
        for (total,) in in_order(root, "Sqrt"):
            for variance, epsilon in both_orders(total, "Add"):
                size, squared = float_of(epsilon), mean_of(variance)
                if x is not None and size is not None and squared is not None and _is_square(squared, x):
                    return x, size
    return None


def _centred(deviation: ir.Value) -> ir.Value | None:
    """x of x − mean(x)."""
    return next((x for x, mean in in_order(deviation, "Sub") if mean_of(mean) is x), None)


def _is_square(squared: ir.Value, x: ir.Value) -> bool:
    """Whether it is (x − mean(x))²."""
    for base, exponent in in_order(squared, "Pow"):
        if is_number(exponent, 2.0) and _centred(base) is x:
            return True
    return any(_centred(a) is x and _centred(b) is x for a, b in in_order(squared, "Mul"))


def _layer_norm_bias(node: ir.Node) -> ir.Node | None:
    """LayerNormalization without bias, plus a weight `[width]`. The residual stream is none."""
    for normal, bias in both_orders(node.outputs[0], "Add"):
        norm = normal.producer()
        if norm is not None and norm.op_type == "LayerNormalization" and len(norm.inputs) == 2:
            x, axis = norm.inputs[0], norm.attributes.get_int("axis", -1)
            if x is not None and x.shape is not None and axis in (-1, len(x.shape) - 1) and is_weight(bias, x):
                return ir.node("LayerNormalization", [*norm.inputs, bias], dict(norm.attributes))
    return None


_PATTERNS: tuple[Callable[[ir.Node], ir.Node | None], ...] = (_gelu, _layer_norm, _layer_norm_bias)
