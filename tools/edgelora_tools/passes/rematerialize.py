"""Rematerialization: the backward pass computes again, just before it needs them, values that are not kept for it.

The forward pass is cut into segments where little crosses from one to the next: between layers, whatever they are. What
crosses is kept, and so are small values and the last segment, whose backward pass comes first. Each other segment is
computed once more from what was kept, behind a gate that opens with the cotangent of its outputs: no runtime can do it
earlier, or merge it with the first time (Chen et al., arXiv:1604.06174). Masks are inputs: the gradients are the same.
But a runtime may round the second time otherwise: what is compared for equality, as a maximum with what it is of, is
computed again even where it is kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.backward import captured, values_read
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import rank
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.segments import choose_cuts
from edgelora_tools.passes.value_sizes import VIEWS, ValueSizes

COTANGENT = "cotangent."
"""How the names of the values begin with which a backward pass begins: constants or parts of inputs, or else inputs."""
WORTHWHILE = 32 << 20
"""Bytes that are worth a further graph."""
_RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
                     "RandomUniformLike"})  # fmt: skip
_SMALL = 64  # what is smaller than the largest value by this is kept


def rematerialize(
    model: ir.Model, sizes: Mapping[str, int], worthwhile: int = WORTHWHILE
) -> tuple[ir.Model, float] | None:
    """A copy of a training graph that holds less at a time, and its work as a multiple of the plain one's.

    None unless it holds at least `worthwhile` bytes less, and a fifth, at these `sizes` of the model inputs' dynamic
    dimensions. Values must have their shapes. Outputs are unchanged.
    """
    plain = _Forward(model.graph, sizes)
    if plain.saved[-1:] < [worthwhile]:
        return None
    copy = model.clone()
    common.CommonSubexpressionEliminationPass()(copy)
    common.RemoveUnusedNodesPass()(copy)
    forward = _Forward(copy.graph, sizes)
    cuts = choose_cuts(forward.crossing(), forward.saved)
    if not cuts.at or forward.saved[-1] - cuts.held < worthwhile:
        return None
    work = sum(forward.sizes.operations(node) for node in copy.graph)
    again = _Backward(copy.graph, forward, cuts.at).recompute()
    common.TopologicalSortPass()(copy)
    return copy, 1 + again / max(work, 1)


class _Forward:
    """The nodes of the forward pass, and what the rest reads of it.

    `backward` are the nodes that come after, of which those of `dependent` need a cotangent. `saved` are the bytes that
    are held for them after each node of the plain graph.
    """

    def __init__(self, graph: ir.Graph, sizes: Mapping[str, int]) -> None:
        self.sizes = ValueSizes(graph, sizes)
        self.dependent = _dependent(graph)
        nodes = list(graph)
        begun = next((at for at, node in enumerate(nodes) if node in self.dependent), len(nodes))
        self.nodes, self.backward = nodes[:begun], nodes[begun:]
        self.place = {y: at for at, node in enumerate(self.nodes) for y in node.outputs}
        self.last_use = dict(self.place)
        for at, node in enumerate(self.nodes):
            self.last_use.update((x, at) for x in values_read(node) if x in self.place)
        self.read = {x for node in self.backward for x in values_read(node) if x in self.place}
        self.comparing = self._comparing()
        self.constant, self.once = set[ir.Value](), set[ir.Value]()
        self.pinned = self._pinned(max((self.sizes.bytes(x) for x in self.read), default=0) // _SMALL)
        self.saved = self._saved()

    def _pinned(self, small: int) -> set[ir.Value]:
        """What is kept wherever it stands: small values, constants, and those that cannot be computed again."""
        pinned = set[ir.Value]()
        for node in self.nodes:
            if all(self.still(x) for x in values_read(node)):
                self.constant.update(node.outputs)
            tensors = all(isinstance(x.type, ir.TensorType | None) for x in (*values_read(node), *node.outputs))
            if captured(node) or node.op_type in _RANDOM or not tensors:
                self.once.update(node.outputs)
            pinned.update(y for y in node.outputs if self.sizes.bytes(y) <= small)
        self.once |= self.constant
        return self.once | pinned | {x for node in self.backward for x in captured(node) if x in self.place}

    def _comparing(self) -> set[ir.Node]:
        """The nodes of the backward pass that compare for equality, and those that only spread what is compared."""
        found = set[ir.Node]()
        for node in reversed(self.backward):
            readers = {reader for y in node.outputs for reader, _ in y.uses()}
            spreads = bool(readers) and readers <= found and node not in self.dependent
            if node.op_type == "Equal" or spreads:
                found.add(node)
        return found

    def still(self, value: ir.Value) -> bool:
        """Whether it is a constant or a shape, or made of these alone: nothing that a gate can hold back."""
        shape = value.dtype is not None and value.dtype.is_integer() and value.shape is not None and rank(value) < 2
        return shape or value.is_initializer() or value in self.constant

    def _saved(self) -> list[int]:
        total, saved, counted = 0, list[int](), set[ir.Value]()
        for node in self.nodes:
            for root in (self._root(y) for y in node.outputs if y in self.read):
                if root not in counted and root in self.place:
                    counted.add(root)
                    total += self.sizes.bytes(root)
            saved.append(total)
        return saved

    def crossing(self) -> list[int]:
        """Bytes that the forward pass still needs, after each node, of what was made before; small values aside."""
        change = [0] * (len(self.nodes) + 1)
        spans: dict[ir.Value, tuple[int, int]] = {}
        for value, made in self.place.items():
            root = self._root(value)
            if value not in self.pinned and root in self.place:
                begin, end = spans.get(root, (made, made))
                spans[root] = min(begin, made), max(end, self.last_use[value])
        for root, (begin, end) in spans.items():
            change[begin] += self.sizes.bytes(root)
            change[end] -= self.sizes.bytes(root)
        total, crossing = 0, list[int]()
        for step in change[:-1]:
            total += step
            crossing.append(total)
        return crossing

    def _root(self, value: ir.Value) -> ir.Value:
        """The value whose memory this one is a view of."""
        while (node := value.producer()) is not None and node.op_type in VIEWS and value in self.place:
            if (viewed := node.inputs[0]) is None:
                break
            value = viewed
        return value


def _dependent(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that depend on the cotangents with which the backward pass begins."""
    made = {y for node in graph for y in node.outputs if str(y.name).startswith(COTANGENT)}
    values = made or {x for x in graph.inputs if str(x.name).startswith(COTANGENT)}
    nodes = set[ir.Node]()
    for node in graph:
        if any(x in values for x in values_read(node)):
            values.update(node.outputs)
            nodes.add(node)
    return nodes


class _Backward:
    """Rewrites the backward pass so that it reads, of all segments but the last, what it computes again."""

    def __init__(self, graph: ir.Graph, forward: _Forward, cuts: Sequence[int]) -> None:
        self.graph, self.forward, self.cuts = graph, forward, cuts
        self.op: OpBuilder = GraphBuilder(free_names(graph)).op

    def recompute(self) -> int:
        """Do it, and return the operations that were added."""
        segments = self._segments()
        gradients = {y: segments[p] for y in self.graph.outputs if (p := y.producer()) in self.forward.dependent}
        work = 0
        for segment in reversed(range(len(self.cuts))):
            members = [node for node in self.forward.backward if segments[node] == segment]
            opens = self._opens(members, segment, segments)
            if opens is not None:
                done = [y for y, first in gradients.items() if first > segment]
                gradients = {y: first for y, first in gradients.items() if first <= segment}
                gate = _Gate(self.op, opens, done)
                work += self._compute_again(segment, segments, gate)
                self._wait(members, gate)
        return work

    def _segment(self, value: ir.Value) -> int | None:
        """The segment in which `value` must be computed again; None if it is kept."""
        if not self._heavy(value):
            return None
        segment = bisect_left(self.cuts, self.forward.place[value])
        kept = segment == len(self.cuts) or self.forward.last_use[value] > self.cuts[segment]
        return None if kept else segment

    def _heavy(self, value: ir.Value | None) -> TypeGuard[ir.Value]:
        """Whether it is of the forward pass, and not kept for its own sake."""
        return value in self.forward.place and value not in self.forward.pinned

    def _segments(self) -> dict[ir.Node, int]:
        """The segment to whose backward pass each node belongs.

        That is the first that it, or what it depends on, needs; and for what depends on no cotangent, the last to
        which one of its readers belongs.
        """
        found: dict[ir.Node, int] = {}
        for node in self.forward.backward:
            own = [segment for x in values_read(node) if (segment := self._segment(x)) is not None]
            above = [found[p] for x in values_read(node) if (p := x.producer()) in found]
            found[node] = min([*own, *above], default=len(self.cuts))
        for node in reversed(self.forward.backward):
            if node not in self.forward.dependent:
                readers = [found[reader] for y in node.outputs for reader, _ in y.uses() if reader in found]
                found[node] = max(readers, default=len(self.cuts))
        return found

    def _opens(self, members: Iterable[ir.Node], segment: int, segments: Mapping[ir.Node, int]) -> ir.Value | None:
        """The last of the cotangents with which the backward pass enters the segment."""
        order = {
            y: at
            for at, node in enumerate(self.forward.backward)
            if node in self.forward.dependent and segments[node] > segment
            for y in node.outputs
        }
        return max(
            (x for node in members for x in values_read(node) if x in order), key=order.__getitem__, default=None
        )

    def _compute_again(self, segment: int, segments: Mapping[ir.Node, int], gate: _Gate) -> int:
        """Let the backward pass read copies of the segment's values; returns the operations that they cost."""
        begin = self.cuts[segment - 1] + 1 if segment else 0
        nodes = self.forward.nodes[begin : self.cuts[segment] + 1]
        needed = {y for node in nodes for y in node.outputs if y in self.forward.read and self._segment(y) == segment}
        comparing = {node for node in self.forward.comparing if segments[node] == segment}
        compared = {x for node in comparing for x in values_read(node)} - self.forward.once
        needed |= {y for node in nodes for y in node.outputs if y in compared}
        for node in reversed(nodes):
            if any(y in needed for y in node.outputs):
                needed.update(x for x in node.inputs if x is not None and self._segment(x) == segment)
        copied = [node for node in nodes if any(y in needed for y in node.outputs)]
        copies: dict[ir.Value, ir.Value] = {}
        for node in copied:
            copies.update(zip(node.outputs, self._copy(node, copies, gate).outputs, strict=True))
        for node in self.forward.backward:
            for at, x in enumerate(node.inputs):
                if x in copies and (self._segment(x) == segment or node in comparing):
                    node.replace_input_with(at, copies[x])
        return sum(self.forward.sizes.operations(node) for node in copied)

    def _copy(self, node: ir.Node, copies: Mapping[ir.Value, ir.Value], gate: _Gate) -> ir.Node:
        """The node on what is computed again; at least one of its inputs waits for the gate."""
        inputs = [None if x is None else copies.get(x) or (gate(x) if self._heavy(x) else x) for x in node.inputs]
        if all(x is y for x, y in zip(inputs, node.inputs, strict=True)):
            at, first = next((at, x) for at, x in enumerate(inputs) if x is not None and not self.forward.still(x))
            inputs[at] = gate(first)
        copy = ir.node(
            node.op_type,
            inputs,
            dict(node.attributes),
            domain=node.domain,
            overload=node.overload,
            num_outputs=len(node.outputs),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.shape, new.type = old.shape, old.type
        self.graph.append(copy)
        return copy

    def _wait(self, members: Iterable[ir.Node], gate: _Gate) -> None:
        """What is computed of kept values alone is not computed early either."""
        for node in members:
            if node not in self.forward.dependent:
                for at, x in enumerate(node.inputs):
                    if self._heavy(x):
                        node.replace_input_with(at, gate(x))


class _Gate:
    """Values that are there only once `opens` and `done` are: reshaped to their own shape, plus nothing of those.

    The nothing is cut out of numbers, or sizes, that no runtime knows beforehand, so that it is not folded away. The
    gradients `done` are asked for lest what they are computed from is held until the end.
    """

    def __init__(self, op: OpBuilder, opens: ir.Value, done: Sequence[ir.Value]) -> None:
        self.op, self.opened = op, dict[ir.Value, ir.Value]()
        nothing = op.Cast(op.Slice(op.Reshape(opens, [-1]), [0], [0]), to=ir.DataType.INT64)
        self.nothing = op.Concat(nothing, *(op.Slice(op.Shape(y), [0], [0]) for y in done), axis=0)

    def __call__(self, x: ir.Value) -> ir.Value:
        if x not in self.opened:
            opened = self.op.Reshape(x, self.op.Concat(self.op.Shape(x), self.nothing, axis=0), allowzero=1)
            opened.shape, opened.type = x.shape, x.type
            self.opened[x] = opened
        return self.opened[x]
