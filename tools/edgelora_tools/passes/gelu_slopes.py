"""GELU between products computes its slope when it runs, and the backward pass is one product with it.

Y = X∘Φ(X) and the slope Φ(X) + X∘φ(X) share erf; the backward pass alone would compute it again, and read X ten times.
The slope is kept in place of X. Written in U = X/√2, all numbers are factors of the products around it, which take
them as their own (scales.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.frozen import is_frozen
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import rank
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.methods.lora import OP_TYPE as LORA
from edgelora_tools.passes.matching import made_by

_HALF_ROOT = math.sqrt(0.5)


def keep_slopes(graph: ir.Graph) -> None:
    """Give every exact Gelu of the rows that a frozen product makes a second output, twice its slope."""
    for node in list(graph):
        if node.op_type != "Gelu" or node.domain not in ("", "ai.onnx"):
            continue
        (x,), (y,) = operands(node), node.outputs
        if node.attributes.get_string("approximate", "none") != "none" or not _is_product(x) or len(x.uses()) > 1:
            continue
        new = ir.node("GeluSlope", [x], domain=DOMAIN, num_outputs=2, name=node.name)
        new.metadata_props.update(node.metadata_props)
        for value in new.outputs:
            value.shape, value.type = y.shape, y.type
        new.outputs[0].name, y.name = y.name, None
        graph.insert_before(node, new)
        y.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _is_product(x: ir.Value) -> bool:
    """Whether `x` `[rows, width]` is a product with frozen weights, plus a bias or an adapter's delta."""
    if x.shape is None or rank(x) != 2 or x.is_graph_output():
        return False
    node = made_by(x, "Add", "MatMul", "Gemm")
    if node is None:
        return False
    if node.op_type != "Add":
        return node.inputs[1] is not None and node.inputs[1].const_value is not None
    return any(_is_product(a) and (is_frozen(b) or _is_delta(b)) for a, b in (operands(node), operands(node)[::-1]))


def _is_delta(x: ir.Value) -> bool:
    node = x.producer()
    return node is not None and (node.domain, node.op_type) == (DOMAIN, LORA)


@gradient_rule("GeluSlope", domain=DOMAIN)
def gelu_slope(op: OpBuilder, node: ir.Node, dy: ir.Value, ds: None = None) -> Thunks:
    """Y = X∘Φ(X), S = 2·(Φ + X∘φ(X)), φ the normal density and Φ its integral; dX = (dY/2)∘S."""
    return (lambda: op.Mul(op.Mul(dy, 0.5), node.outputs[1]),)


class GeluSlope:
    """GeluSlope(X) -> (Y, S) in standard ONNX; Gelu where the slope is not read.

    With U = X/√2 and F = 1 + erf U: Y = U∘F/√2, S = F + 2/√π·U∘exp(−U²).
    """

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        (x,) = operands(node)
        if not node.outputs[1].uses():
            y = op.Gelu(x)
            return y, y
        u = op.Mul(x, _HALF_ROOT)
        f = op.Add(op.Erf(u), 1.0)
        bell = op.Exp(op.Sub(math.log(2.0 / math.sqrt(math.pi)), op.Mul(u, u)))
        s = op.Add(f, op.Mul(u, bell))
        y = op.Reshape(op.Mul(u, f), op.Shape(s))  # S first: U and F are not kept for the backward pass
        y.shape, y.type = x.shape, x.type
        return op.Mul(y, _HALF_ROOT), s


LOWERED = {"GeluSlope": GeluSlope()}
