"""Which operators treat every row of a tensor alone: the features of one token, or of one sample."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgelora_tools.composites.quantized import is_quantized
from edgelora_tools.gradients.shapes import axis_of, dims, known_equal, rank
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.methods.lora import OP_TYPE as LORA

ALONE = frozenset({
    "Abs", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
    "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu", "Silu",
})  # fmt: skip
"""Operators on each element of one tensor; what stands behind it is a number."""
TOGETHER = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "SwiGLU"})
"""Operators on elements of several tensors that are broadcast to each other."""
ALONG = frozenset({"LayerNormalization", "RMSNormalization", "RmsNorm", "Softmax", "LogSoftmax"})
"""Operators along the last axis, whose further inputs are vectors of its size."""
PRODUCTS = frozenset({"MatMul", "Gemm", "QuantizedProduct", "BlockProduct", "VocabularyProduct", LORA})
"""Products with matrices."""


def row_inputs(node: ir.Node, of_rows: Callable[[ir.Value | None], bool]) -> list[int] | None:
    """The inputs whose rows make those of the output if the node treats every row alone, else None.

    `of_rows` tells whether a value `[..., features]` has the rows in question; all other inputs must be the same for
    every row.
    """
    if node.domain not in ("", "ai.onnx", DOMAIN) or (len(node.outputs) != 1 and node.op_type != LORA):
        return None
    if not of_rows(node.outputs[0]):
        return None
    xs = list(node.inputs)
    if node.op_type in ALONE:
        wanted, others = [0], xs[1:]
    elif node.op_type in TOGETHER:
        wanted = [i for i, x in enumerate(xs) if of_rows(x)]
        others = [x for i, x in enumerate(xs) if i not in wanted]
    elif node.op_type in PRODUCTS and not node.attributes.get_int("transA", 0):
        matrices = xs[1:] if node.op_type == LORA else () if is_quantized(node) else xs[1:2]
        if any(x is None or x.shape is None or rank(x) != 2 for x in matrices):
            return None
        wanted, others = [0], xs[2:] if node.op_type == "Gemm" else []
    elif node.op_type in ALONG and _is_last(node):
        wanted, others = [0], xs[1:]
    else:
        return None
    alike = all(x is None or (x.shape is not None and rank(x) <= 1) for x in others)
    return wanted if wanted and alike and all(of_rows(xs[i]) for i in wanted) else None


def has_rows_of(x: ir.Value | None, node: ir.Node) -> bool:
    """Whether `x` `[..., features]` has the rows of the node's output."""
    y = node.outputs[0]
    if x is None or x.shape is None or y.shape is None or rank(x) != rank(y) or rank(x) < 2:
        return False
    of_product = node.op_type in PRODUCTS and x is node.inputs[0]
    return x is y or of_product or known_equal(dims(x)[:-1], dims(y)[:-1])


def viewed(node: ir.Node) -> ir.Value | None:
    """The input of a node that changes only how rows are counted: `[batch, length, width]` and `[rows, width]`."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Flatten", "Reshape"):
        return None
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None or sorted((rank(x), rank(y))) != [2, 3]:
        return None
    return x if known_equal(dims(x)[-1:], dims(y)[-1:]) else None


def put_on_rows(node: ir.Node, count: int | str) -> None:
    """Give the outputs of a row-wise node, whose inputs are matrices now, their shapes `[count, features]`."""
    if "axis" in node.attributes and node.op_type in ALONG:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
    for y in node.outputs:
        assert y.shape is not None
        y.shape = ir.Shape([count, y.shape[-1]])


def _is_last(node: ir.Node) -> bool:
    y = node.outputs[0]
    return axis_of(node.attributes.get_int("axis", -1), y) == rank(y) - 1
