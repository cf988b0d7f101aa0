"""Attention of some queries only: where the rows that are read come from heads, so do the queries; keys stay whole.

The tokens that are read of each sample stand side by side, `[batch, heads, queries, ...]`, as many as of the sample
with the most. Every operator between the queries' projection and the sum of values treats each query alone.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.shapes import axis_of, dims, rank, size_of
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.heads import heads_of, merged_of
from edgelora_tools.passes.row_wise import ALONE, TOGETHER
from edgelora_tools.passes.rows import Places, annotated, rows_of

_QUERIES = "queries"
_SAME = ALONE | TOGETHER | {"Where", "IsNaN", "Softmax", "LogSoftmax", "Rotary"}
"""Operators that give each query something of what they are given of it."""
_WITH_ALL = frozenset({"MatMul", "Attend"})
"""Operators that give each query something of what their first input has of it, and of all of the second."""


def attend_less(op: OpBuilder, node: ir.Node, at: Places) -> ir.Value | None:
    """The rows at `at` of heads that `node` joins, Reshape(Transpose(X)), computed of those queries alone.

    None, and nothing is changed, where X is not what attention makes.
    """
    x = _split(node.outputs[0], "Reshape", "Transpose", heads_first=False)
    if x is None:
        return None
    way = _Way(x)
    if not way.follow(x) or not way.queries or not way.is_closed(node):
        return None
    slots, positions = _slots(op, x, at)
    for reader, position, tokens in way.queries:
        split = [*dims(x)[:2], _QUERIES, dims(reader.inputs[position] or x)[3]]
        rows = rows_of(op, tokens, at)
        reader.replace_input_with(position, heads_of(op, (rows, slots.kept, slots.places), split, zeros=False))
    for reader, position, table in way.tables:
        reader.replace_input_with(position, _of_queries(op, table, positions))
    for step in way.steps:
        for y in step.outputs:
            batch, heads, _, width = dims(y)
            y.shape = ir.Shape([batch, heads, _QUERIES, width])
    return merged_of(op, (x, slots.kept, slots.places))


class _Way:
    """From heads up to the queries: the nodes between, and what these read that differs from query to query.

    `queries` are heads split from tokens `[batch, length, width]`; `tables`, such as masks, are of no head.
    """

    def __init__(self, x: ir.Value) -> None:
        self.batch, self.heads, self.length, _ = dims(x)
        self.steps: list[ir.Node] = []
        self.edges: set[tuple[ir.Node, int]] = set()
        self.queries: list[tuple[ir.Node, int, ir.Value]] = []
        self.tables: list[tuple[ir.Node, int, ir.Value]] = []

    def follow(self, y: ir.Value) -> bool:
        """Walk up from `y`; whether every node there treats each query alone."""
        node = y.producer()
        if node is None or node in self.steps:
            return node is not None
        if node.domain not in ("", "ai.onnx", DOMAIN) or any(v.shape is None or rank(v) != 4 for v in node.outputs):
            return False
        self.steps.append(node)
        if node.op_type in _WITH_ALL:
            return self._reads(node, 0)
        along = axis_of(node.attributes.get_int("axis", -1), y)
        return node.op_type in _SAME and along == 3 and all(self._reads(node, i) for i in range(len(node.inputs)))

    def _reads(self, node: ir.Node, position: int) -> bool:
        x = node.inputs[position]
        if x is None or (x.shape is not None and (rank(x) < 2 or dims(x)[-2] == 1)):
            return True
        if x.shape is None or rank(x) != 4 or dims(x)[2] != self.length:
            return False
        tokens = _split(x, "Transpose", "Reshape", heads_first=True)
        if tokens is not None:
            self.queries.append((node, position, tokens))
            return True
        if dims(x)[1] == 1 and dims(x)[0] in (1, self.batch):
            self.tables.append((node, position, x))
            return True
        self.edges.add((node, position))
        return self.follow(x)

    def is_closed(self, end: ir.Node) -> bool:
        """Whether nothing else reads what is on the way, `end` being where it leads; there are several heads."""
        outputs = [y for step in self.steps for y in step.outputs]
        last = end.inputs[0]
        uses = {use for y in outputs for use in y.uses()} - self.edges
        leads = last is not None and {use[0] for use in uses} == {last.producer()} and len(last.uses()) == 1
        return leads and self.heads != 1 and not any(y.is_graph_output() for y in outputs)


def _split(y: ir.Value, outer: str, inner: str, heads_first: bool) -> ir.Value | None:
    """X of `outer`(`inner`(X)): one splits or joins `[batch, length, width]`, the other turns heads to the front."""
    first = y.producer()
    between = first.inputs[0] if first is not None and first.op_type == outer else None
    second = None if between is None else between.producer()
    x = second.inputs[0] if second is not None and second.op_type == inner else None
    if first is None or second is None or x is None or x.shape is None or y.shape is None:
        return None
    turn = second if inner == "Transpose" else first
    split, joined = (y, x) if heads_first else (x, y)
    if list(turn.attributes.get_ints("perm", None) or []) != [0, 2, 1, 3] or rank(split) != 4 or rank(joined) != 3:
        return None
    batch, heads, length, size = dims(split)
    if not isinstance(heads, int) or not isinstance(size, int):
        return None
    return x if dims(joined) == (batch, length, heads * size) else None


def _slots(op: OpBuilder, x: ir.Value, at: Places) -> tuple[Places, ir.Value]:
    """Where each row stands among the queries, and each query's flat position of its token `[batch, queries]`."""
    sizes = op.Concat(size_of(op, x, 0), [-1], axis=0)
    taken = op.Cast(op.Greater(op.Reshape(at.places, sizes), 0), to=ir.DataType.INT64)
    counts = op.ReduceSum(taken, [1], keepdims=0)
    most = op.ReduceMax(counts, keepdims=0)
    number = op.Range(0, op.Squeeze(op.Shape(at.kept), [0]), 1)
    sample = op.Div(at.kept, size_of(op, x, 2))
    before = op.Gather(op.CumSum(counts, op.Constant(value_int=0), exclusive=1), sample)
    slot = op.Add(op.Mul(sample, most), op.Sub(number, before))
    none = op.ConstantOfShape(op.Mul(size_of(op, x, 0), most), value=ir.tensor([0], dtype=ir.DataType.INT64))
    row = op.ScatterElements(none, slot, op.Add(number, 1), axis=0)
    positions = op.Reshape(op.Gather(op.Concat([0], at.kept, axis=0), row), sizes)
    return annotated(slot, row, dims(at.kept)[0], f"{dims(x)[0]}*{_QUERIES}"), positions


def _of_queries(op: OpBuilder, table: ir.Value, positions: ir.Value) -> ir.Value:
    """`[batch or 1, 1, length, n]` at these positions, `[batch, 1, queries, n]`."""
    if dims(table)[0] == 1:
        positions = op.Mod(positions, size_of(op, table, 2))
    taken = op.Unsqueeze(op.Gather(op.Flatten(table, axis=3), positions, axis=0), [1])
    taken.shape, taken.type = ir.Shape([None, 1, _QUERIES, dims(table)[3]]), table.type
    return taken
