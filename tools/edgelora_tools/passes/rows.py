"""Row-wise regions as matrices of rows: tokens `[batch, length, width]` become `[rows, width]`, without the padding.

A linear layer, a normalization, an activation or a residual sum treats every token alone. Between two places where
tokens meet, which is attention, the tokens are one matrix whose rows are those that the mask keeps. What is computed
of them is the same; what would have been computed of padding never is (docs/decisions/0017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import Dim, dims, flatten_rows, rank, shape_of
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.row_wise import PRODUCTS, put_on_rows, row_inputs

MASK = "attention_mask"
_ROWS = "rows"
_ENTERING = PRODUCTS | frozenset({"LayerNormalization", "RMSNormalization", "RmsNorm"})
"""Operators for whose sake tokens are made rows."""


@dataclass(frozen=True)
class Places:
    """Some of the tokens `[batch, length]`: the flat positions of these rows `[rows]`, and for every token its row
    counted from 1, or 0."""

    kept: ir.Value
    places: ir.Value


def gather_rows(model: ir.Model, kept: bool) -> bool:
    """Rewrite the row-wise regions of the main graph in place; whether there was any.

    With `kept` the rows are the tokens that `attention_mask` `[batch, length]` keeps; otherwise all. A sample of which
    a Rows reads a token that the mask leaves out (a loss may weigh any) is kept whole. The graph's outputs keep their
    shapes; at tokens that are left out they are those of a row of zeros. Shapes must be known (measure_shapes.py).
    """
    mask = token_mask(model)
    if mask is None:
        return False
    read = list({node.inputs[2]: None for node in model.graph if is_rows(node)})
    known = all(places is not None and dims(places) == (_count(mask),) for places in read)
    region = _Region(model, mask, kept and known, [places for places in read if places is not None])
    for node in list(model.graph):
        region.visit(node)
    region.leave_outputs()
    common.TopologicalSortPass()(model)
    return bool(region.matrices)


def token_mask(model: ir.Model) -> ir.Value | None:
    """The input `attention_mask`, if it is `[batch, length]` of sizes that are dynamic."""
    mask = next((x for x in model.graph.inputs if x.name == MASK and x.shape is not None), None)
    return mask if mask is not None and len(dims(mask)) == 2 and all(isinstance(d, str) for d in dims(mask)) else None


def _count(mask: ir.Value) -> str:
    """How many tokens there are, as a dimension."""
    return "*".join(map(str, dims(mask)))


class _Region:
    """The rewriting of one graph: `matrices` has the rows of every value that has been made a matrix."""

    def __init__(self, model: ir.Model, mask: ir.Value, kept: bool, read: Sequence[ir.Value]) -> None:
        self.model, self.mask, self.kept, self.read = model, mask, kept, read
        self.tokens = dims(mask)
        self.op = GraphBuilder(free_names(model.graph)).op
        self.matrices: dict[ir.Value, ir.Value] = {}
        self.tensors: dict[ir.Value, ir.Value] = {}
        self.among: dict[ir.Value, Places] = {}
        self.places: Places | None = None
        self.count = _ROWS if kept else _count(mask)

    def visit(self, node: ir.Node) -> None:
        """Put the node on rows if it can be and it pays; otherwise give it tensors of tokens again."""
        positions = row_inputs(node, self._of_tokens)
        if positions is not None:
            entered = any(node.inputs[i] in self.matrices for i in positions)
            if entered or node.op_type in _ENTERING or _widens(node):
                for i in positions:
                    node.replace_input_with(i, self._matrix(node.inputs[i]))
                put_on_rows(node, self.count)
                self.matrices |= {y: y for y in node.outputs}
                return
        if is_rows(node) and (x := node.inputs[0]) is not None and self.matrices.get(x) is x:
            self._read_again(node)
            return
        for i, x in enumerate(node.inputs):
            if x in self.matrices and self.matrices[x] is x:
                node.replace_input_with(i, self._tensor(x))

    def _read_again(self, node: ir.Node) -> None:
        """Let a Rows read its tokens among the rows that are kept."""
        if not self.kept:
            return
        kept, places = operands(node)[1:]
        if kept not in self.among:
            op, all_kept = self.op, self._kept()
            row = op.Sub(op.Gather(all_kept.places, kept), 1)
            back = op.Gather(places, all_kept.kept)
            self.among[kept] = annotated(row, back, dims(kept)[0], self.count)
        node.replace_input_with(1, self.among[kept].kept)
        node.replace_input_with(2, self.among[kept].places)

    def leave_outputs(self) -> None:
        """The graph's outputs as tensors of tokens, under their names."""
        outputs = self.model.graph.outputs
        for i, y in enumerate(outputs):
            if self.matrices.get(y) is y:
                name = y.name
                whole = self._tensor(y)
                y.name, whole.name = f"{name}.rows", name
                outputs[i] = whole

    def _of_tokens(self, x: ir.Value | None) -> bool:
        """Whether `x` is `[batch, length, width]`, or has been."""
        if x is None or x.shape is None:
            return False
        if x in self.matrices:
            return True
        return rank(x) == 3 and dims(x)[:2] == self.tokens and dims(x)[2] not in (None, *self.tokens)

    def _matrix(self, x: ir.Value | None) -> ir.Value:
        """The rows of `x`."""
        assert x is not None
        if x not in self.matrices:
            self.matrices[x] = _placed(self.op, "Rows", (x, *self._chosen()), [self.count, dims(x)[2]])
        return self.matrices[x]

    def _tensor(self, y: ir.Value) -> ir.Value:
        """The rows `y` as `[batch, length, width]`."""
        if y not in self.tensors:
            self.tensors[y] = _placed(self.op, "Padded", (y, *self._chosen()), [*self.tokens, dims(y)[1]])
        return self.tensors[y]

    def _chosen(self) -> tuple[ir.Value, ...]:
        return (self._kept().kept, self._kept().places) if self.kept else ()

    def _kept(self) -> Places:
        """The tokens that are rows."""
        if self.places is None:
            op = self.op
            mask = op.Cast(self.mask, to=ir.DataType.BOOL)
            for places in self.read:
                read = op.Reshape(op.Greater(places, 0), op.Shape(self.mask))
                outside = op.Cast(op.And(read, op.Not(mask)), to=ir.DataType.INT64)
                mask = op.Or(mask, op.Greater(op.ReduceMax(outside, [1], keepdims=1), 0))
            self.places = places_of(op, mask, self.tokens, self.count)
        return self.places


def _widens(node: ir.Node) -> bool:
    """Whether a node makes numbers of small codes: rows are taken before that."""
    return node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8


def places_of(op: OpBuilder, mask: ir.Value, tokens: Sequence[Dim], count: Dim) -> Places:
    """The tokens where `mask` (bool, of the sizes `tokens`) holds; the first where it never does: no matrix is empty.

    `count` is a name for how many there are.
    """
    flat = op.Reshape(mask, [-1])
    is_first = op.Equal(op.Range(0, op.Squeeze(op.Shape(flat), [0]), 1), 0)
    none = op.Equal(op.ReduceSum(op.Cast(flat, to=ir.DataType.INT64), keepdims=0), 0)
    flat = op.Or(flat, op.And(is_first, none))
    kept = op.Reshape(op.NonZero(flat), [-1])
    ones = op.Cast(flat, to=ir.DataType.INT64)
    places = op.Mul(op.CumSum(ones, op.Constant(value_int=0)), ones)
    return annotated(kept, places, count, "*".join(map(str, tokens)))


def annotated(kept: ir.Value, places: ir.Value, count: Dim, tokens: Dim) -> Places:
    """The two with their shapes: `count` rows, of so many tokens."""
    for value, size in ((kept, count), (places, tokens)):
        value.shape, value.type = ir.Shape([size]), ir.TensorType(ir.DataType.INT64)
    return Places(kept, places)


def rows_of(op: OpBuilder, x: ir.Value, at: Places) -> ir.Value:
    """The rows of X `[batch, length, width]`, or of its tokens `[rows, width]`, at these places."""
    return _placed(op, "Rows", (x, at.kept, at.places), [dims(at.kept)[0], dims(x)[-1]])


def padded_of(op: OpBuilder, y: ir.Value, at: Places, tokens: Sequence[Dim]) -> ir.Value:
    """The rows `y` `[rows, width]` at their places among the tokens, `[*tokens, width]`, and zeros elsewhere."""
    return _placed(op, "Padded", (y, at.kept, at.places), [*tokens, dims(y)[1]])


def is_rows(node: ir.Node) -> bool:
    """Whether the node takes some rows, not all."""
    return (node.domain, node.op_type, len(node.inputs)) == (DOMAIN, "Rows", 3)


def _placed(op: OpBuilder, op_type: str, inputs: Sequence[ir.Value], shape: Sequence[Dim]) -> ir.Value:
    """A node of one of the two kinds on the first input and the places, with its shape."""
    made = getattr(op.builder.opset(DOMAIN, 1), op_type)(*inputs)
    made.shape, made.type = ir.Shape(list(shape)), inputs[0].type
    return made


@gradient_rule("Rows", domain=DOMAIN)
def rows(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = the rows of X that are kept; dX = dY at their places, zeros elsewhere."""
    x, *places = operands(node)
    return (lambda: _placed(op, "Padded", (dy, *places), dims(x)),)


@gradient_rule("Padded", domain=DOMAIN)
def padded(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X at the places of its rows, zeros elsewhere; dX = dY there."""
    x, *places = operands(node)
    return (lambda: _placed(op, "Rows", (dy, *places), dims(x)),)


class Rows:
    """Rows(X `[batch, length, width]` or `[rows, width]`, kept, places) in standard ONNX."""

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        x, *places = operands(node)
        flat = flatten_rows(op, x)
        return (op.Gather(flat, places[0], axis=0) if places else flat,)


class Padded:
    """Padded(Y `[rows, width]`, kept, places), `[batch, length, width]` or `[rows, width]`, in standard ONNX.

    A Gather from the rows with one of zeros before them: a third faster than scattering into zeros.
    """

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        y, *places = operands(node)
        out, width = node.outputs[0], dims(y)[1]
        if places:
            zeros = op.Constant(value=ir.tensor([[0.0] * width], dtype=y.dtype)) if isinstance(width, int) else None
            above = op.Pad(y, [1, 0, 0, 0]) if zeros is None else op.Concat(zeros, y, axis=0)
            y = op.Gather(above, places[1], axis=0)
        return (y if rank(out) == 2 else op.Reshape(y, shape_of(op, out), allowzero=1),)


LOWERED = {"Rows": Rows(), "Padded": Padded()}
