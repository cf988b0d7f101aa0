"""Rotary position embedding: Y = X∘cos + rotate(X)∘sin (Su et al. 2021, arXiv:2104.09864).

rotate([X₁ X₂]) = [−X₂ X₁], X₁ and X₂ the halves of the last axis, as transformers has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.registry import Composite, composite_node
from edgelora_tools.gradients.nodes import ints_of, operand, operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import annotate, dims, unbroadcast
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.matching import both_orders, in_order, made_by, number_of

_ALONE = {"Cos", "Sin", "Neg", "Cast", "CastLike", "Identity"}


def recognise(node: ir.Node) -> ir.Node | None:
    """X∘cos + rotate(X)∘sin."""
    for straight, turned in both_orders(node.outputs[0], "Add"):
        for rotated, sin in both_orders(turned, "Mul"):
            x = _rotated(rotated)
            if x is None or x.shape is None or node.outputs[0].shape != x.shape:
                continue
            for same, cos in both_orders(straight, "Mul"):
                if same is x:
                    return composite_node("Rotary", [x, cos, sin])
    return None


def _rotated(value: ir.Value) -> ir.Value | None:
    """X of [−X₂ X₁]."""
    node = made_by(value, "Concat")
    if node is None or len(node.inputs) != 2 or not _is_last(node.attributes["axis"].as_int(), value):
        return None
    second, first = node.inputs
    for (negated,) in in_order(second, "Neg"):
        x, which = _half(negated)
        same, other = _half(first)
        if x is not None and x is same and (which, other) == (1, 0):
            return x
    return None


def _half(value: ir.Value | None) -> tuple[ir.Value | None, int]:
    """(X, which half of X's last axis `value` is), or (None, 0)."""
    part = made_by(value, "Split")
    if part is not None and part.inputs[0] is not None and len(part.outputs) == 2:
        x, sizes = part.inputs[0], ints_of(operand(part, 1))
        even = sizes is None or len(set(sizes)) == 1
        return (x, part.outputs.index(value)) if even and _is_last(part.attributes.get_int("axis", 0), x) else (None, 0)
    part = made_by(value, "Slice")
    if part is None or part.inputs[0] is None:
        return None, 0
    x = part.inputs[0]
    starts, ends, axes, steps = (ints_of(operand(part, i)) for i in range(1, 5))
    width = dims(x)[-1] if x.shape is not None else None
    if starts is None or ends is None or axes is None or len(axes) != 1 or steps not in (None, [1]):
        return None, 0
    if not isinstance(width, int) or width % 2 or not _is_last(axes[0], x):
        return None, 0
    span = (starts[0] % width, min(ends[0] % width if ends[0] < 0 else ends[0], width))
    halves = [(0, width // 2), (width // 2, width)]
    return (x, halves.index(span)) if span in halves else (None, 0)


def _is_last(axis: int, x: ir.Value) -> bool:
    return axis == -1 or (x.shape is not None and axis == len(x.shape) - 1)


@gradient_rule("Rotary", domain=DOMAIN)
def rotary(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X∘cos + rotate(X)∘sin.

    dX   = dY∘cos − rotate(dY∘sin): rotate is a quarter turn, and its adjoint the turn back
    dcos = Σ dY∘X
    dsin = Σ dY∘rotate(X)

    Where both halves of sin are the same that is dY turned by the opposite angle: dX = dY∘cos + rotate(dY)∘(−sin).

    The rules of the parts would pad each half with zeros and add the two to the rest: temporaries of the size of
    X that this does without.
    """
    x, cos, sin = operands(node)

    def dx() -> ir.Value:
        if repeats(sin):
            back = annotate(op.Neg(sin), sin)
            return annotate(op.builder.opset(DOMAIN, 1).Rotary(dy, cos, back), x)
        return annotate(op.Sub(op.Mul(dy, cos), _rotate(op, op.Mul(dy, sin))), x)

    return (
        dx,
        lambda: unbroadcast(op, op.Mul(dy, x), cos),
        lambda: unbroadcast(op, op.Mul(dy, _rotate(op, x)), sin),
    )


def repeats(table: ir.Value | None) -> bool:
    """Whether both halves of the last axis of `table` are known to be the same, as they are of [θ θ]."""
    if table is None:
        return False
    if table.const_value is not None:
        values = table.const_value.numpy()
        half = values.shape[-1] // 2 if values.ndim else 0
        return values.ndim > 0 and np.array_equal(values[..., :half], values[..., half:])
    node = table.producer()
    if node is None or node.domain or not node.inputs:
        return False
    first, *others = node.inputs
    if node.op_type == "Concat":
        return len(others) == 1 and others[0] is first and _is_last(node.attributes["axis"].as_int(), table)
    if node.op_type == "Unsqueeze":
        axes = ints_of(operand(node, 1))
        last = {-1, -1 if table.shape is None else len(table.shape) - 1}
        return axes is not None and table.shape is not None and not last & set(axes) and repeats(first)
    if node.op_type == "Mul":
        return any(repeats(a) for a, b in both_orders(table, "Mul") if number_of(b) is not None)
    return node.op_type in _ALONE and repeats(first)


def _rotate(op: OpBuilder, x: ir.Value) -> ir.Value:
    """[−X₂ X₁]."""
    first, second = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
    return annotate(op.Concat(op.Neg(second), first, axis=-1), x)


def lower(op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
    """X∘cos + rotate(X)∘sin."""
    x, cos, sin = operands(node)
    return (op.Add(op.Mul(x, cos), op.Mul(_rotate(op, x), sin)),)


ROTARY = Composite("Rotary", recognise, lower)
