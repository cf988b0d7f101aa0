"""RMS normalization: Y = γ∘X/√(mean(X²) + ε) over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.registry import Composite, composite_node
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.normalization import inverse_rms, rms_gradients
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import dims, shaped
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.matching import both_orders, in_order, is_number, is_weight, made_by, mean_of, number_of

OP_TYPE = "RMSNormalization"


def recognise(node: ir.Node) -> ir.Node | None:
    """γ∘(X∘s), γ a weight `[width]`."""
    for normal, gamma in both_orders(node.outputs[0], "Mul"):
        found = _normalized(normal)
        if found is not None and is_weight(gamma, found[0]):
            return composite_node(OP_TYPE, [found[0], gamma], {"axis": -1, "epsilon": found[1]})
    return None


def _normalized(normal: ir.Value) -> tuple[ir.Value, float] | None:
    """(X, ε) of X∘s, s = 1/√(mean(X²) + ε), in any of its spellings."""
    for x, square in _over_root(normal):
        for mean, epsilon in both_orders(square, "Add"):
            size, squared = number_of(epsilon), mean_of(mean)
            if size is not None and squared is not None and _is_square(squared, x):
                return x, size
    return None


def _over_root(normal: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
    """(X, v) of X/√v, X·(1/√v) or X·v^−½."""
    found = [(x, v) for x, root in in_order(normal, "Div") for (v,) in in_order(root, "Sqrt")]
    for x, inverse in both_orders(normal, "Mul"):
        for (root,) in in_order(inverse, "Reciprocal"):
            found += [(x, v) for (v,) in in_order(root, "Sqrt")]
        quotients = [root for one, root in in_order(inverse, "Div") if is_number(one, 1.0)]
        found += [(x, v) for root in quotients for (v,) in in_order(root, "Sqrt")]
        found += [(x, v) for v, power in in_order(inverse, "Pow") if is_number(power, -0.5)]
    return found


def _is_square(squared: ir.Value, x: ir.Value) -> bool:
    power = made_by(squared, "Pow")
    if power is not None:
        return power.inputs[0] is x and is_number(power.inputs[1], 2.0)
    return any(a is x and b is x for a, b in in_order(squared, "Mul"))


@gradient_rule(OP_TYPE, domain=DOMAIN)
def rms_norm(op: OpBuilder, node: ir.Node, dy: ir.Value, ds: None = None) -> Thunks:
    """As of the operator; s is an output that the node is given, for what computes Y may have it at hand."""
    return rms_gradients(op, node, dy, [-1], lambda: _inverse(node))


def _inverse(node: ir.Node) -> ir.Value:
    """s `[…, 1]` of the node, added to its outputs where it has none."""
    if len(node.outputs) == 1:
        (x, _), (y,) = operands(node), node.outputs
        node.resize_outputs(2)
        s = node.outputs[1]
        s.name = f"{y.name}.inv_std_dev"
        shaped(s, [*dims(x)[:-1], 1], x)
    return node.outputs[1]


def lower(op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
    """X/√(mean(X²) + ε)∘γ, as ONNX Runtime recognises it, and s where the node has it."""
    x, gamma = operands(node)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    mean = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
    y = op.Mul(op.Div(x, op.Sqrt(op.Add(mean, epsilon))), gamma)
    return (y, inverse_rms(op, x, [-1], epsilon))[: len(node.outputs)]


RMS_NORM = Composite(OP_TYPE, recognise, lower)
