"""If, Loop and Scan: the backward pass of a body stands in a body of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools import backward  # the walk and these rules call each other
from edgelora_tools.gradients.bodies import Copies, body_input, close_body, new_body, remove_dead_nodes, replay
from edgelora_tools.gradients.nodes import refuse
from edgelora_tools.gradients.registry import Thunk, Thunks, gradient_rule
from edgelora_tools.gradients.shapes import Dim, annotate, dims, rank, zeros_like

Cotangent = tuple[ir.Value, ir.Value]
"""An output of a body, and its cotangent."""


def _walk(
    op: OpBuilder,
    nodes: Sequence[ir.Node],
    copy: Copies,
    cotangents: Sequence[Cotangent],
    wrt: Sequence[ir.Value],
) -> Mapping[ir.Value, ir.Value]:
    """dL/dx by x of `wrt`, through the copied nodes of a body.

    Raises:
        ValueError: an operator in the body has no rule, or not for its form.
    """
    seeds: dict[ir.Value, ir.Value] = {}
    for output, dy in cotangents:  # several outputs may be one value
        y = copy(output)
        seeds[y] = annotate(op.Add(seeds[y], dy) if y in seeds else op.Identity(dy), y)
    found = backward.walk_back(op, nodes, seeds, wrt)
    if found.blocked:
        raise ValueError(f"in its body: {'; '.join(map(str, found.blocked.values()))}")
    return found.of


@gradient_rule("If", with_bodies=True)
def if_(op: OpBuilder, node: ir.Node, *dys: ir.Value | None, wanted: Sequence[ir.Value]) -> Thunks:
    """Y = then(V) where the condition holds, else else(V); V are the values that the branches take from outside.

    dV = If of the same condition, whose branches are the backward passes of the branches

    A branch computes its forward pass again. What only the other branch reads has a gradient of zeros.
    """
    taken = backward.captured(node)
    asked = [v for v in taken if v in wanted]

    def back(name: str) -> ir.Graph:
        inner = new_body(op, name)
        branch = node.attributes[name].as_graph()
        nodes, copy = replay(inner, branch, {})
        cotangents = [(y, dy) for y, dy in zip(branch.outputs, dys, strict=True) if dy is not None]
        grads = _walk(inner, nodes, copy, cotangents, asked)
        body = close_body(inner, [grads[v] if v in grads else zeros_like(inner, v) for v in asked])
        remove_dead_nodes(body)
        return body

    @cache
    def gradients() -> dict[ir.Value, ir.Value]:
        bodies = {name: back(name) for name in ("then_branch", "else_branch")}
        made = op.If(node.inputs[0], **bodies, _outputs=len(asked))
        outputs = [made] if isinstance(made, ir.Value) else list(made)
        return {v: annotate(dv, v) for v, dv in zip(asked, outputs, strict=True)}

    return [None, *(partial(lambda v: gradients()[v], v) if v in wanted else None for v in taken)]


@dataclass(frozen=True)
class _Slices:
    """A tensor that a Scan reads or builds slice by slice, and the slice in the body."""

    inside: ir.Value
    whole: ir.Value
    axis: int = 0
    from_end: bool = False


@dataclass(frozen=True)
class _Steps:
    """What a Scan and a Loop have in common.

    Before a step the body is given each state, and after it returns each; `replayed` are the inputs of the
    body, beside the slices, that a step is done again from. `count` is the number of steps; the `condition`
    of a Loop holds at every step that is taken.
    """

    node: ir.Node
    body: ir.Graph
    first: Sequence[ir.Value | None]
    before: Sequence[ir.Value]
    after: Sequence[ir.Value]
    last: Sequence[ir.Value]
    read: Sequence[_Slices]
    made: Sequence[_Slices]
    replayed: Sequence[ir.Value]
    count: Dim
    condition: ir.Value | None = None


@gradient_rule("Scan", with_bodies=True)
def scan(op: OpBuilder, node: ir.Node, *dys: ir.Value | None, wanted: Sequence[ir.Value]) -> Thunks:
    """S_t, Y_t = body(S_t₋₁, X_t, V); the slices X_t are read one by one, the slices Y_t stacked.

    dS_t₋₁, dX_t, dV_t = the body's backward pass at S_t₋₁, X_t, V from dS_t, dY_t
    dV = Σ dV_t

    A Scan from the last step to the first carries dS and the sum of dV, and builds dX. It reads the states
    before each step, S_t₋₁, which the forward node is made to return.
    """
    body = node.attributes["body"].as_graph()
    count = node.attributes.get_int("num_scan_inputs", 0)
    n = len(node.inputs) - count

    def slices(inside: Sequence[ir.Value], whole: Sequence[ir.Value | None], of: str) -> list[_Slices]:
        axes, directions = (_option(node, f"scan_{of}_{key}", len(inside)) for key in ("axes", "directions"))
        return [
            _Slices(v, w, axis + rank(v) + 1 if axis < 0 else axis, bool(d))
            for v, w, axis, d in zip(inside, whole, axes, directions, strict=True)
            if w is not None
        ]

    read = slices(body.inputs[n:], node.inputs[n:], "input")
    steps = _Steps(
        node,
        body,
        node.inputs[:n],
        body.inputs[:n],
        body.outputs[:n],
        node.outputs[:n],
        read,
        slices(body.outputs[n:], node.outputs[n:], "output"),
        body.inputs[:n],
        dims(read[0].whole)[read[0].axis],
    )
    return _back(op, steps, dys, wanted)


def _option(node: ir.Node, name: str, count: int) -> list[int]:
    """A list of integers, one for each slice; zeros where the attribute is absent."""
    return list(node.attributes[name].as_ints()) if name in node.attributes else [0] * count


@gradient_rule("Loop", with_bodies=True)
def loop(op: OpBuilder, node: ir.Node, *dys: ir.Value | None, wanted: Sequence[ir.Value]) -> Thunks:
    """S_t, Y_t = body(t, S_t₋₁, V), as often as count and condition allow.

    The backward pass is that of a Scan, over the steps that were taken: the forward node is made to return
    the states before each step, and has as many as it took steps. So the number of steps may depend on data.
    """
    body = node.attributes["body"].as_graph()
    number, condition, *before = body.inputs
    n = len(before)
    steps = _Steps(
        node,
        body,
        node.inputs[2:],
        before,
        body.outputs[1 : n + 1],
        node.outputs[:n],
        [],
        [_Slices(v, w) for v, w in zip(body.outputs[n + 1 :], node.outputs[n:], strict=True)],
        [number, *before],
        next((dims(y)[0] for y in node.outputs[n:] if y.shape is not None), None),
        condition,
    )
    return [None, None, *_back(op, steps, dys, wanted)]


def _back(
    op: OpBuilder, steps: _Steps, dys: Sequence[ir.Value | None], wanted: Sequence[ir.Value]
) -> list[Thunk | None]:
    """A thunk for each first state, each tensor that is read in slices, and each value taken from outside."""
    taken = backward.captured(steps.node)
    asked = [v for v in taken if v in wanted]
    sliced = [s for s in steps.read if s.whole in wanted]
    carried = _carried(steps, asked, [s.inside for s in sliced], wanted)

    @cache
    def gradients() -> tuple[list[ir.Value], list[ir.Value], list[ir.Value]]:
        outputs = _scan_back(op, steps, dys, asked, sliced, carried)
        a, b = len(carried), len(carried) + len(asked)
        return outputs[:a], outputs[b:], outputs[a:b]

    def thunks(kind: int, among: Sequence, keys: Sequence) -> list[Thunk | None]:
        return [partial(lambda i: gradients()[kind][i], among.index(k)) if k in among else None for k in keys]

    return [
        *thunks(0, carried, range(len(steps.first))),
        *thunks(1, sliced, steps.read),
        *thunks(2, asked, taken),
    ]  # fmt: skip


def _carried(
    steps: _Steps, asked: Sequence[ir.Value], slices: Sequence[ir.Value], wanted: Sequence[ir.Value]
) -> list[int]:
    """The states that depend on what is asked for, in any number of steps."""
    carried = [i for i, s in enumerate(steps.first) if s is not None and s in wanted]
    while True:
        sources = {*asked, *slices, *(steps.before[i] for i in carried)}
        active = backward.active_values(steps.body, sources)
        more = [i for i, s in enumerate(steps.after) if s in active and i not in carried]
        if not more:
            return sorted(carried)
        carried += more


def _scan_back(
    op: OpBuilder,
    steps: _Steps,
    dys: Sequence[ir.Value | None],
    asked: Sequence[ir.Value],
    sliced: Sequence[_Slices],
    carried: Sequence[int],
) -> list[ir.Value]:
    """The Scan from the last step to the first; returns dS of the first states, then dV, then dX."""
    dlast, dmade = dys[: len(steps.last)], dys[len(steps.last) :]
    firsts = [_tensor(steps, steps.first[i]) for i in carried]
    with_dy = [(s, annotate(dy, s.whole)) for s, dy in zip(steps.made, dmade, strict=True) if dy is not None]

    inner = new_body(op, "back")
    dstates, sums = ([body_input(inner, v) for v in values] for values in (firsts, asked))
    given = {v: _input_of_step(inner, steps, v) for v in steps.replayed}
    given |= {s.inside: body_input(inner, s.whole, without_axis=s.axis) for s in steps.read}
    dslices = [body_input(inner, dy, without_axis=s.axis) for s, dy in with_dy]
    known = {} if steps.condition is None else {steps.condition: inner.Constant(value=ir.tensor(True))}
    nodes, copy = replay(inner, steps.body, given | known)
    for i in carried:
        _require_one_shape(steps, given[steps.before[i]], copy(steps.after[i]))
    cotangents = [(steps.after[i], d) for i, d in zip(carried, dstates, strict=True)]
    cotangents += [(s.inside, d) for (s, _), d in zip(with_dy, dslices, strict=True)]
    states, slices = [given[steps.before[i]] for i in carried], [given[s.inside] for s in sliced]
    grads = _walk(inner, nodes, copy, cotangents, [*states, *asked, *slices])
    dfirst, dsliced = ([grads[v] if v in grads else zeros_like(inner, v) for v in vs] for vs in (states, slices))
    added = [inner.Add(total, grads[v]) if v in grads else total for v, total in zip(asked, sums, strict=True)]
    body = close_body(inner, [*dfirst, *added, *dsliced])
    remove_dead_nodes(body)

    needed = [v for v in given if given[v].uses()] or list(given)[:1]
    read = {s.inside: s for s in steps.read} | {v: _returned(steps, v, given[v]) for v in needed if v in steps.replayed}
    scanned = [(given[v], read[v]) for v in needed]
    scanned += [(d, _Slices(d, dy, s.axis, s.from_end)) for (s, dy), d in zip(with_dy, dslices, strict=True)]
    body.inputs[:] = [*dstates, *sums, *(inside for inside, _ in scanned)]
    made = op.Scan(
        *(zeros_like(op, s) if (dy := dlast[i]) is None else dy for i, s in zip(carried, firsts, strict=True)),
        *(zeros_like(op, v) for v in asked),
        *(s.whole for _, s in scanned),
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_axes=[s.axis for _, s in scanned],
        scan_input_directions=[int(not s.from_end) for _, s in scanned],
        **({"scan_output_axes": [s.axis for s in sliced]} if sliced else {}),
        **({"scan_output_directions": [int(not s.from_end) for s in sliced]} if sliced else {}),
        _outputs=len(body.outputs),
    )
    outputs = [made] if isinstance(made, ir.Value) else list(made)
    likes = [*firsts, *asked, *(s.whole for s in sliced)]
    return [annotate(y, like) for y, like in zip(outputs, likes, strict=True)]


def _tensor(steps: _Steps, value: ir.Value | None) -> ir.Value:
    """`value`, a state before the first step.

    Raises:
        ValueError: it is a sequence or an optional value.
    """
    if value is None or isinstance(value.type, ir.SequenceType | ir.OptionalType):
        raise refuse(steps.node, "carries a state that is not a tensor")
    return value


def _input_of_step(inner: OpBuilder, steps: _Steps, value: ir.Value) -> ir.Value:
    """The input of the backward body that stands for an input of the forward one."""
    if value in steps.before:
        first = steps.first[list(steps.before).index(value)]
        return body_input(inner, value if first is None else first)
    number = ir.Value(type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    return body_input(inner, number)


def _require_one_shape(steps: _Steps, before: ir.Value, after: ir.Value) -> None:
    """A state that grows cannot be returned for every step in one tensor."""
    if before.shape is None or after.shape is None:
        return
    pairs = list(zip(dims(before), dims(after), strict=False))
    other_sizes = any(isinstance(p, int) and isinstance(q, int) and p != q for p, q in pairs)
    if rank(before) != rank(after) or other_sizes:
        raise refuse(steps.node, "changes the shape of a state from step to step")


def _returned(steps: _Steps, value: ir.Value, like: ir.Value) -> _Slices:
    """An input of the body at every step: the node is made to return it, stacked along a new first axis."""
    node, body = steps.node, steps.body
    copy = ir.node("Identity", [_tensor(steps, value)])
    copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = f"{value.name}.kept", like.type, like.shape
    body.append(copy)
    body.outputs.append(copy.outputs[0])
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in node.attributes:
            node.attributes[name] = ir.AttrInt64s(name, [*node.attributes[name].as_ints(), 0])
    node.resize_outputs(len(node.outputs) + 1)
    whole = node.outputs[-1]
    whole.name, whole.type = f"{node.name}.{value.name}", like.type
    if like.shape is not None:
        whole.shape = ir.Shape([steps.count, *dims(like)])
    return _Slices(value, whole)
