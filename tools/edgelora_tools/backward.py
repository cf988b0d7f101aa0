"""The reverse walk: from the outputs' cotangents to the gradients of the inputs that adapters own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora_tools.gradients import NON_DIFFERENTIABLE, RULES, key_of
from edgelora_tools.gradients.shapes import dims, known_equal, refine

_DIFFERENTIABLE_TYPES = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class MissingRule:
    """A node that a gradient would have to pass and that has no rule."""

    op_type: str
    domain: str
    node: str


class MissingRuleError(ConversionError):
    """Some operators between the adapters and the loss have no gradient rule."""

    def __init__(self, missing: Sequence[MissingRule]) -> None:
        self.missing = tuple(missing)
        lines = [f"  {m.domain or 'ai.onnx'}::{m.op_type} (node {m.node})" for m in self.missing]
        super().__init__(
            "no gradient rule for\n"
            + "\n".join(lines)
            + "\nadapters after these nodes can still be trained: exclude the earlier ones with --exclude-modules"
        )


def active_values(nodes: Iterable[ir.Node], wrt: Iterable[ir.Value]) -> set[ir.Value]:
    """The differentiable values that depend on any value of `wrt`, those of `wrt` among them."""
    active = set(wrt)
    for node in nodes:
        if key_of(node) not in NON_DIFFERENTIABLE and any(x in active for x in node.inputs):
            active.update(y for y in node.outputs if y.dtype is None or y.dtype in _DIFFERENTIABLE_TYPES)
    return active


def differentiate(
    op: OpBuilder, nodes: Sequence[ir.Node], cotangents: Mapping[ir.Value, ir.Value], wrt: Sequence[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """Emit, through `op`, the backward pass of `nodes` (in topological order).

    `cotangents` seeds outputs with dL/dy. Returns dL/dx for each x of `wrt` that the seeded outputs
    depend on.

    Raises:
        MissingRuleError: operators on the way have no rule; all of them are named.
    """
    active = active_values(nodes, wrt)
    grads = dict(cotangents)
    missing: list[MissingRule] = []
    for node in reversed(nodes):
        if key_of(node) in NON_DIFFERENTIABLE or not any(x in active for x in node.inputs):
            continue
        dys = [grads.get(y) for y in node.outputs]
        if all(dy is None for dy in dys):
            continue
        rule = RULES.get(key_of(node))
        if rule is None:
            missing.append(MissingRule(node.op_type, node.domain, node.name or "?"))
            for x in node.inputs:  # walk on, so that every missing rule is reported at once
                if x is not None and x in active:
                    grads.setdefault(x, x)
            continue
        if missing:
            grads.update((x, x) for x in node.inputs if x is not None and x in active)
            continue
        for x, thunk in zip(node.inputs, rule(op, node, *dys), strict=False):
            if x is not None and x in active and thunk is not None:
                dx = thunk()
                _check_shape(dx, x, node)
                grads[x] = refine(op.Add(grads[x], dx) if x in grads else dx, x)
    if missing:
        raise MissingRuleError(missing[::-1])
    return {x: grads[x] for x in wrt if x in grads}


def _check_shape(dx: ir.Value, x: ir.Value, node: ir.Node) -> None:
    """A gradient has its variable's shape; a rule that breaks this is a bug, found at conversion."""
    if dx.shape is None or x.shape is None:
        return
    mine, theirs = dims(dx), dims(x)
    static = all(isinstance(d, int) for d in (*mine, *theirs))
    if len(mine) != len(theirs) or (static and not known_equal(mine, theirs)):
        raise AssertionError(f"the rule of {node.op_type} ({node.name}) gave {mine} for an input of shape {theirs}")
