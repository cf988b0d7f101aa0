"""A language model's logits from codes of its vocabulary's matrix: Y = (X·Qᵀ)∘s + b, a scale for every token.

The pass that quantizes a base makes these nodes (passes/quantize.py); no group of nodes is recognised as one. A table
of embeddings that is tied to the head reads rows of the same codes, so that there is one matrix, `[vocabulary, width]`,
in inference, scoring, generation and training. Codes are real a block of tokens at a time.

There is no gradient rule: in training a TokenLoss has the node in its body, and computes it of some tokens at a time
(token_loss.py). Where an adapter stands in the head, which needs all logits, the head stays real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import OpBuilder

from edgelora_tools.composites.quantized_product import LARGEST, codes_of
from edgelora_tools.gradients.bodies import body_input, close_body, new_body
from edgelora_tools.gradients.nodes import operand
from edgelora_tools.gradients.shapes import dims, rank, shaped

OP_TYPE = "VocabularyProduct"


@dataclass(frozen=True)
class VocabularyProduct:
    """VocabularyProduct(X `[..., width]`, Q int8 `[vocabulary, width]`, s `[vocabulary]`, b `[vocabulary]` or absent).

    The largest number of a token's row has the code 127 or −127. A block has `most` tokens at the most.
    """

    most: int = 256  # docs/decisions/0045 has the table

    @property
    def op_type(self) -> str:
        return OP_TYPE

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        """A Loop over blocks of as many tokens each, and what is left over behind it."""
        x, codes, scale, bias = (operand(node, i) for i in range(4))
        assert x is not None and codes is not None and scale is not None
        vocabulary, width = (int(str(d)) for d in dims(codes))
        rows = x if rank(x) == 2 else shaped(op.Reshape(x, [-1, width]), ["rows", width], x)
        count = dims(rows)[0]
        blocks = -(-vocabulary // self.most)
        size = vocabulary // blocks
        inner = new_body(op, "vocabulary")
        number, condition = (
            body_input(inner, ir.Value(type=ir.TensorType(kind), shape=ir.Shape([])))
            for kind in (ir.DataType.INT64, ir.DataType.BOOL)
        )
        first = inner.Unsqueeze(inner.Mul(number, size), [0])
        block = inner.Slice(codes, first, inner.Add(first, size), [0])
        z = product_of_codes(inner, rows, shaped(block, [size, width], codes))
        body = close_body(inner, [condition, z])
        trips, always = op.Constant(value=ir.tensor(blocks)), op.Constant(value=ir.tensor(True))
        each = shaped(op.Loop(trips, always, body=body, _outputs=1), [blocks, count, size], x)
        sizes = op.Concat(op.Shape(rows, start=0, end=1), [blocks * size], axis=0)
        y = shaped(op.Reshape(op.Transpose(each, perm=[1, 0, 2]), sizes), [count, blocks * size], x)
        if left := vocabulary - blocks * size:
            block = shaped(op.Slice(codes, [blocks * size], [vocabulary], [0]), [left, width], codes)
            y = shaped(op.Concat(y, product_of_codes(op, rows, block), axis=-1), [count, vocabulary], x)
        y = scaled(op, y, scale, bias)
        return (y if rank(x) == 2 else op.Reshape(y, op.Concat(op.Shape(x, start=0, end=-1), [vocabulary], axis=0)),)


def product_of_codes(op: OpBuilder, rows: ir.Value, codes: ir.Value) -> ir.Value:
    """X·Qᵀ `[rows, tokens]` of rows `[rows, width]` and codes `[tokens, width]`, which become real numbers here."""
    real = real_numbers(op, codes, rows)
    return shaped(op.Gemm(rows, real, transB=1), [dims(rows)[0], dims(codes)[0]], rows)


def real_numbers(op: OpBuilder, codes: ir.Value, like: ir.Value) -> ir.Value:
    """The codes as numbers of the type of `like`."""
    assert like.dtype is not None
    return shaped(op.Cast(codes, to=like.dtype), dims(codes), like)


def scaled(op: OpBuilder, y: ir.Value, scale: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Y∘s + b, of vectors as long as Y's rows."""
    made = shaped(op.Mul(y, scale), dims(y), y)
    return made if bias is None else shaped(op.Add(made, bias), dims(y), y)


def token_codes(w: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(Q `[vocabulary, width]`, s `[vocabulary]`) of W `[width, vocabulary]`, as a table of embeddings has them."""
    return codes_of(w.T, LARGEST[8], axis=0)


VOCABULARY_PRODUCT = VocabularyProduct()
