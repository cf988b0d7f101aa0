"""The reverse walk: from the outputs' cotangents to the gradients of the inputs that adapters own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora_tools.expansions.registry import REASON
from edgelora_tools.gradients.registry import NON_DIFFERENTIABLE, QUANTIZERS, RULES, WITH_BODIES, Thunks, key_of
from edgelora_tools.gradients.shapes import REAL, dims, known_equal, refine

_FLOAT8 = {
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
}


@dataclass(frozen=True)
class MissingRule:
    """A node that a gradient would have to pass and that has no rule, or is of a form that its rule lacks."""

    op_type: str
    domain: str
    node: str
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.domain or 'ai.onnx'}::{self.op_type} (node {self.node})"
        return f"{text}: {self.reason}" if self.reason else text


class MissingRuleError(ConversionError):
    """Some operators on the way of a gradient have no rule; all of them are in `missing`."""

    def __init__(self, missing: Sequence[MissingRule]) -> None:
        self.missing = tuple(missing)
        super().__init__("\n".join(["no gradient rule for", *(f"  {m}" for m in missing)]))


@dataclass(frozen=True)
class Gradients:
    """What a backward pass came to.

    `of` is dL/dx by x; `blocked` the nodes that no gradient could pass, in the order of the graph, with the
    reason; `lost` the values that stand before any of these, whose gradient would be none or only a part.
    """

    of: Mapping[ir.Value, ir.Value]
    blocked: Mapping[ir.Node, MissingRule]
    lost: frozenset[ir.Value]


def captured(node: ir.Node) -> list[ir.Value]:
    """What the bodies of an If, Loop or Scan take from outside, each value once."""
    found: dict[ir.Value, None] = {}
    for attribute in node.attributes.values():
        bodies = {ir.AttributeType.GRAPH: lambda a: [a.value], ir.AttributeType.GRAPHS: lambda a: a.value}
        for body in bodies.get(attribute.type, lambda _: [])(attribute):
            inside = {*body.inputs, *body.initializers.values(), *(y for n in body for y in n.outputs)}
            read = [x for n in body for x in values_read(n)]
            found.update((x, None) for x in (*read, *body.outputs) if x is not None and x not in inside)
    return list(found)


def values_read(node: ir.Node) -> list[ir.Value]:
    """What a node depends on: its inputs that are there, and what its bodies take from outside."""
    return [*(x for x in node.inputs if x is not None), *captured(node)]


def active_values(nodes: Iterable[ir.Node], wrt: Iterable[ir.Value]) -> set[ir.Value]:
    """The differentiable values that depend on any value of `wrt`, those of `wrt` among them.

    Real numbers are differentiable, and so are the codes that stand for them: what a quantizer makes,
    and what is computed from that.
    """
    active = set(wrt)
    for node in nodes:
        read = [x for x in values_read(node) if x in active]
        if not read or key_of(node) in NON_DIFFERENTIABLE:
            continue
        codes = key_of(node) in QUANTIZERS or any(_holds_codes(x) for x in read)
        active.update(y for y in node.outputs if y.dtype is None or y.dtype in REAL or (codes and _holds_codes(y)))
    return active


def _holds_codes(x: ir.Value) -> bool:
    """Whether the values of `x` are of a type that quantizers make."""
    return x.dtype is not None and (x.dtype.is_integer() or x.dtype in _FLOAT8)


def differentiate(
    op: OpBuilder, nodes: Sequence[ir.Node], cotangents: Mapping[ir.Value, ir.Value], wrt: Sequence[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """Emit the backward pass of `nodes` as `walk_back` does, and return dL/dx by x.

    Raises:
        MissingRuleError: operators on the way have no rule; all of them are named.
    """
    gradients = walk_back(op, nodes, cotangents, wrt)
    if gradients.blocked:
        raise MissingRuleError(list(gradients.blocked.values()))
    return dict(gradients.of)


def walk_back(
    op: OpBuilder, nodes: Sequence[ir.Node], cotangents: Mapping[ir.Value, ir.Value], wrt: Sequence[ir.Value]
) -> Gradients:
    """Emit, through `op`, the backward pass of `nodes` (in topological order).

    `cotangents` seeds outputs with dL/dy. The result has dL/dx for each x of `wrt` that the seeded outputs
    depend on and that no operator without a rule keeps from them.
    """
    _check_order(nodes)
    active = active_values(nodes, wrt)
    grads = dict(cotangents)
    blocked: dict[ir.Node, MissingRule] = {}
    lost: set[ir.Value] = set()
    for node in reversed(nodes):
        reads = [x for x in values_read(node) if x in active]
        if not reads or key_of(node) in NON_DIFFERENTIABLE:
            continue
        if any(y in lost for y in node.outputs):
            lost.update(reads)
            if key_of(node) not in RULES:  # so that every missing rule is reported at once
                blocked[node] = MissingRule(node.op_type, node.domain, node.name or "?")
            continue
        dys = [grads.get(y) for y in node.outputs]
        if all(dy is None for dy in dys):
            continue
        try:
            for x, thunk in zip((*node.inputs, *captured(node)), _thunks(op, node, dys, reads), strict=False):
                if x is not None and x in active and thunk is not None:
                    dx = thunk()
                    _check_shape(dx, x, node)
                    grads[x] = refine(op.Add(grads[x], dx) if x in grads else dx, x)
        except ValueError as error:  # no rule, or a form of the operator that the rule does not cover
            blocked[node] = MissingRule(node.op_type, node.domain, node.name or "?", str(error))
            lost.update(reads)
    found = {x: grads[x] for x in wrt if x in grads and x not in lost}
    return Gradients(found, dict(reversed(blocked.items())), frozenset(lost))


def _thunks(op: OpBuilder, node: ir.Node, dys: Sequence[ir.Value | None], wanted: Sequence[ir.Value]) -> Thunks:
    """What the node's rule answers; `wanted` are the values whose gradients will be asked for.

    Raises:
        ValueError: there is no rule, or it does not cover this form of the operator.
    """
    rule = RULES.get(key_of(node))
    if rule is None:
        raise ValueError(node.metadata_props.get(REASON, ""))
    return rule(op, node, *dys, wanted=wanted) if key_of(node) in WITH_BODIES else rule(op, node, *dys)


def _check_order(nodes: Sequence[ir.Node]) -> None:
    """Behind a node that reads what is made later gradients would be left out: a pass's bug, found at conversion."""
    place = {y: at for at, node in enumerate(nodes) for y in node.outputs}
    for at, node in enumerate(nodes):
        for x in values_read(node):
            if place.get(x, -1) >= at:
                raise AssertionError(f"{node.op_type} ({node.name}) reads {x.name}, which is made later")


def _check_shape(dx: ir.Value, x: ir.Value, node: ir.Node) -> None:
    """A gradient has its variable's shape; a rule that breaks this is a bug, found at conversion."""
    if dx.shape is None or x.shape is None:
        return
    mine, theirs = dims(dx), dims(x)
    static = all(isinstance(d, int) for d in (*mine, *theirs))
    if len(mine) != len(theirs) or (static and not known_equal(mine, theirs)):
        raise AssertionError(f"the rule of {node.op_type} ({node.name}) gave {mine} for an input of shape {theirs}")
