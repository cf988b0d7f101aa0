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
_MOST_NAMES = 12


@dataclass(frozen=True)
class MissingRule:
    """A node that a gradient would have to pass and that has no rule, or is of a form that its rule lacks."""

    op_type: str
    domain: str
    node: str
    reason: str = ""


class MissingRuleError(ConversionError):
    """Some operators between the adapters and the loss have no gradient rule.

    `blocked` are the insertion points before these operators, `trainable` those that remain.
    """

    def __init__(
        self, missing: Sequence[MissingRule], blocked: Sequence[str] = (), trainable: Sequence[str] = ()
    ) -> None:
        self.missing, self.blocked, self.trainable = tuple(missing), tuple(blocked), tuple(trainable)
        lines = ["no gradient rule for", *map(_missing_line, self.missing)]
        if blocked:
            lines.append(f"which stand between the loss and {_listed(blocked)}")
        if trainable:
            lines.append(f"still trainable with --target-modules: {_listed(trainable)}")
        elif blocked:
            lines.append("no insertion point can be trained: choose an earlier output with --source-output")
        super().__init__("\n".join(lines))


def _missing_line(missing: MissingRule) -> str:
    line = f"  {missing.domain or 'ai.onnx'}::{missing.op_type} (node {missing.node})"
    return f"{line}: {missing.reason}" if missing.reason else line


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return " ".join(names[:_MOST_NAMES]) + more


def values_read(node: ir.Node) -> list[ir.Value]:
    """What a node depends on: its inputs, and what the bodies of If, Loop and Scan take from outside."""
    read = [x for x in node.inputs if x is not None]
    for attribute in node.attributes.values():
        bodies = {ir.AttributeType.GRAPH: lambda a: [a.value], ir.AttributeType.GRAPHS: lambda a: a.value}
        for body in bodies.get(attribute.type, lambda _: [])(attribute):
            read += [x for inner in body.all_nodes() for x in inner.inputs if x is not None]
            read.extend(body.outputs)
    return read


def active_values(nodes: Iterable[ir.Node], wrt: Iterable[ir.Value]) -> set[ir.Value]:
    """The differentiable values that depend on any value of `wrt`, those of `wrt` among them."""
    active = set(wrt)
    for node in nodes:
        if key_of(node) not in NON_DIFFERENTIABLE and any(x in active for x in values_read(node)):
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
        reads = values_read(node)
        if key_of(node) in NON_DIFFERENTIABLE or not any(x in active for x in reads):
            continue
        dys = [grads.get(y) for y in node.outputs]
        if all(dy is None for dy in dys):
            continue
        rule = RULES.get(key_of(node))
        if rule is None:
            missing.append(MissingRule(node.op_type, node.domain, node.name or "?"))
        if rule is None or missing:  # walk on, so that every missing rule is reported at once
            grads.update((x, x) for x in reads if x in active)
            continue
        try:
            for x, thunk in zip(node.inputs, rule(op, node, *dys), strict=False):
                if x is not None and x in active and thunk is not None:
                    dx = thunk()
                    _check_shape(dx, x, node)
                    grads[x] = refine(op.Add(grads[x], dx) if x in grads else dx, x)
        except ValueError as error:  # a form of the operator that the rule does not cover
            missing.append(MissingRule(node.op_type, node.domain, node.name or "?", str(error)))
            grads.update((x, x) for x in reads if x in active)
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
