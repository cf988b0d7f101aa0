"""Row-wise regions as matrices of rows: tokens `[batch, length, width]` become `[rows, width]`, without the padding.

A linear layer, a normalization, an activation or a residual sum treats every token alone. Between two places where
tokens meet, which is attention, the tokens are one matrix whose rows are those that the mask keeps. What is computed
of them is the same; what would have been computed of padding never is (docs/decisions/0017).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import GraphBuilder, OpBuilder

from edgelora_tools.composites.quantized import is_quantized
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import Dim, axis_of, dims, rank, shape_of, size_of
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.free_names import free_names

MASK = "attention_mask"
_ROWS = "rows"
_ALONE = frozenset({
    "Abs", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
    "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu", "Silu",
})  # fmt: skip
"""Operators on each element of one tensor; what stands behind it is a number."""
_TOGETHER = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"})
"""Operators on elements of several tensors that are broadcast to each other."""
_ALONG = frozenset({"LayerNormalization", "RMSNormalization", "RmsNorm", "Softmax", "LogSoftmax"})
"""Operators along the last axis, whose further inputs are vectors of its size."""
_PRODUCTS = frozenset({"MatMul", "QuantizedProduct", "BlockProduct"})
"""Products with a matrix."""
_ENTERING = _PRODUCTS | frozenset({"LayerNormalization", "RMSNormalization", "RmsNorm"})
"""Operators for whose sake tokens are made rows."""


def gather_rows(model: ir.Model, kept: bool, first_too: bool = False) -> bool:
    """Rewrite the row-wise regions of the main graph in place; whether there was any.

    With `kept` the rows are the tokens that `attention_mask` `[batch, length]` keeps, and with `first_too` the first
    of each sample; otherwise all, the first position of every sample, then the second, and so on. The graph's outputs
    keep their shapes; at tokens that are left out they are those of a row of zeros. Shapes must be known
    (measure_shapes.py).
    """
    mask = token_mask(model)
    if mask is None:
        return False
    region = _Region(model, mask, kept, first_too)
    for node in list(model.graph):
        region.visit(node)
    region.leave_outputs()
    common.TopologicalSortPass()(model)
    return bool(region.matrices)


def token_mask(model: ir.Model) -> ir.Value | None:
    """The input `attention_mask`, if it is `[batch, length]` of sizes that are dynamic."""
    mask = next((x for x in model.graph.inputs if x.name == MASK and x.shape is not None), None)
    return mask if mask is not None and len(dims(mask)) == 2 and all(isinstance(d, str) for d in dims(mask)) else None


class _Region:
    """The rewriting of one graph: `matrices` has the rows of every value that has been made a matrix."""

    def __init__(self, model: ir.Model, mask: ir.Value, kept: bool, first_too: bool) -> None:
        self.model, self.mask, self.kept, self.first_too = model, mask, kept, first_too
        self.tokens = tokens = dims(mask)
        self.op = GraphBuilder(free_names(model.graph)).op
        self.matrices: dict[ir.Value, ir.Value] = {}
        self.tensors: dict[ir.Value, ir.Value] = {}
        self.places: tuple[ir.Value, ...] | None = None
        self.count = _ROWS if kept else f"{tokens[0]}*{tokens[1]}"

    def visit(self, node: ir.Node) -> None:
        """Put the node on rows if it can be and it pays; otherwise give it tensors of tokens again."""
        positions = self._row_wise(node)
        if positions is not None:
            entered = any(node.inputs[i] in self.matrices for i in positions)
            if entered or node.op_type in _ENTERING:
                for i in positions:
                    node.replace_input_with(i, self._matrix(node.inputs[i]))
                if "axis" in node.attributes and node.op_type in _ALONG:
                    node.attributes["axis"] = ir.AttrInt64("axis", -1)
                (y,) = node.outputs
                assert y.shape is not None
                y.shape = ir.Shape([self.count, *list(y.shape)[2:]])
                self.matrices[y] = y
                return
        for i, x in enumerate(node.inputs):
            if x in self.matrices and self.matrices[x] is x:
                node.replace_input_with(i, self._tensor(x))

    def leave_outputs(self) -> None:
        """The graph's outputs as tensors of tokens, under their names."""
        outputs = self.model.graph.outputs
        for i, y in enumerate(outputs):
            if self.matrices.get(y) is y:
                name = y.name
                whole = self._tensor(y)
                y.name, whole.name = f"{name}.rows", name
                outputs[i] = whole

    def _row_wise(self, node: ir.Node) -> list[int] | None:
        """The inputs that would be matrices if the node treats every token alone, else None."""
        if node.domain not in ("", "ai.onnx", DOMAIN) or len(node.outputs) != 1 or not self._of_tokens(node.outputs[0]):
            return None
        xs = node.inputs
        if node.op_type in _ALONE:
            wanted, others = [0], xs[1:]
        elif node.op_type in _TOGETHER:
            wanted = [i for i, x in enumerate(xs) if x is not None and self._of_tokens(x)]
            others = [x for i, x in enumerate(xs) if i not in wanted]
        elif node.op_type in _PRODUCTS:
            wanted, others = [0], []
            if not is_quantized(node) and (xs[1] is None or xs[1].shape is None or rank(xs[1]) != 2):
                return None
        elif node.op_type in _ALONG and axis_of(node.attributes.get_int("axis", -1), node.outputs[0]) == 2:
            wanted, others = [0], xs[1:]
        else:
            return None
        alone = all(x is None or (x.shape is not None and rank(x) <= 1) for x in others)
        return wanted if wanted and alone and all(self._of_tokens(xs[i]) for i in wanted) else None

    def _of_tokens(self, x: ir.Value | None) -> bool:
        """Whether `x` is `[batch, length, width]`, or has been."""
        if x is None or x.shape is None:
            return False
        if x in self.matrices:
            return True
        return rank(x) == 3 and dims(x)[:2] == self.tokens and isinstance(dims(x)[2], int)

    def _matrix(self, x: ir.Value | None) -> ir.Value:
        """The rows of `x`."""
        assert x is not None
        if x not in self.matrices:
            self.matrices[x] = _placed(self.op, "Rows", (x, *self._places()), [self.count, dims(x)[2]])
        return self.matrices[x]

    def _tensor(self, y: ir.Value) -> ir.Value:
        """The rows `y` as `[batch, length, width]`."""
        if y not in self.tensors:
            self.tensors[y] = _placed(self.op, "Padded", (y, *self._places()), [*self.tokens, dims(y)[1]])
        return self.tensors[y]

    def _places(self) -> tuple[ir.Value, ...]:
        """(kept, places): the flat positions of the rows `[rows]`, and for every token its row counted from 1, or 0."""
        if not self.kept:
            return ()
        if self.places is None:
            op = self.op
            mask = op.Cast(self.mask, to=ir.DataType.BOOL)
            if self.first_too:
                mask = op.Or(mask, _is_first(op, op.Shape(self.mask, start=1, end=2)))
            flat = op.Reshape(mask, [-1])
            flat = op.Or(flat, _is_first(op, op.Shape(flat)))  # there is a row, whatever the mask says
            kept = op.Reshape(op.NonZero(flat), [-1])
            ones = op.Cast(flat, to=ir.DataType.INT64)
            places = op.Mul(op.CumSum(ones, op.Constant(value_int=0)), ones)
            kept.shape, kept.type = ir.Shape([self.count]), ir.TensorType(ir.DataType.INT64)
            places.shape = ir.Shape([f"{self.tokens[0]}*{self.tokens[1]}"])
            places.type = ir.TensorType(ir.DataType.INT64)
            self.places = (kept, places)
        return self.places


def _is_first(op: OpBuilder, count: ir.Value) -> ir.Value:
    """True, then False, `[count]`."""
    return op.Equal(op.Range(0, op.Squeeze(count, [0]), 1), 0)


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
    """Rows(X `[batch, length, width]`, kept, places) in standard ONNX; all rows, without places, by position."""

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        x, *places = operands(node)
        flat = op.Reshape(x if places else op.Transpose(x, perm=[1, 0, 2]), [-1, dims(node.outputs[0])[1]])
        return (op.Gather(flat, places[0], axis=0) if places else flat,)


class Padded:
    """Padded(Y `[rows, width]`, kept, places), `[batch, length, width]`, in standard ONNX.

    A Gather from the rows with one of zeros before them: a third faster than scattering into zeros.
    """

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        y, *places = operands(node)
        width = dims(node.outputs[0])[2]
        assert isinstance(width, int)
        if places:
            zeros = op.Constant(value=ir.tensor([[0.0] * width], dtype=y.dtype))
            y = op.Gather(op.Concat(zeros, y, axis=0), places[1], axis=0)
            return (op.Reshape(y, shape_of(op, node.outputs[0]), allowzero=1),)
        sizes = op.Concat(*(size_of(op, node.outputs[0], axis) for axis in (1, 0, 2)), axis=0)
        return (op.Transpose(op.Reshape(y, sizes, allowzero=1), perm=[1, 0, 2]),)


LOWERED = {"Rows": Rows(), "Padded": Padded()}
