"""The loss of a language model at every row, in blocks of its vocabulary: n_i = −log softmax(f(h_i))[y_i].

f, from a hidden state to logits, is the node's body: a product with a frozen matrix, and what treats every logit alone
behind it. The logits of a block are there for a moment, forward and backward; those of all tokens never are: with a
vocabulary of 49,152 they would be the largest tensor of a step. The matrix is read once, block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools import backward
from edgelora_tools.composites.integer_head import IntegerHead, Pull
from edgelora_tools.composites.token_blocks import Block, walk
from edgelora_tools.composites.vocabulary_product import OP_TYPE as VOCABULARY_PRODUCT
from edgelora_tools.composites.vocabulary_product import product_of_codes, real_numbers, scaled
from edgelora_tools.gradients.bodies import copy_nodes
from edgelora_tools.gradients.nodes import operands, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import Dim, annotate, dims, filled, indicator, rank, shaped
from edgelora_tools.lowering import DOMAIN

OP_TYPE = "TokenLoss"


def begins_head(node: ir.Node) -> bool:
    """Whether a body may begin with this node: a plain product of a row with a matrix, or with codes of one."""
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    return node.op_type in ("MatMul", "Gemm", VOCABULARY_PRODUCT) and not scaled


def token_loss(op: OpBuilder, rows: ir.Value, labels: ir.Value, head: ir.Graph) -> ir.Value:
    """n `[rows]` of hidden states `[rows, width]` and labels int64 `[rows]`; `head` makes logits of rows."""
    losses, slopes = op.builder.opset(DOMAIN, 1).TokenLoss(rows, labels, head=head, _outputs=2)
    annotate(slopes, rows)
    return shaped(losses, dims(rows)[:1], rows)


@gradient_rule(OP_TYPE, domain=DOMAIN)
def token_loss_rule(op: OpBuilder, node: ir.Node, dn: ir.Value, dslopes: None = None) -> Thunks:
    """n_i = −log softmax(f(h_i))[y_i], G_i = dn_i/dh_i.

    dh_i = dn_i·G_i

    G is made in the forward pass, while a block's logits are there: two products in all, not three.
    """
    h, _ = operands(node)
    slopes = node.outputs[1]
    return (lambda: annotate(op.Mul(op.Unsqueeze(dn, [-1]), slopes), h), None)


@dataclass(frozen=True)
class TokenLoss:
    """TokenLoss(H `[rows, width]`, Y int64 `[rows]`) with body `head`; n `[rows]` and G `[rows, width]`.

    Of blocks b of the vocabulary, with m_b = max z_b, e_b = exp(z_b − m_b), m = max m_b and w_b = exp(m_b − m):

    n = m + log s − z_y,  s = Σ_b w_b·Σ e_b
    G = Σ_b w_b·f_b'(h)ᵀ·e_b / s − f_y'(h)

    m, z_y and both sums are kept up as the blocks come (Milakov and Gimelshein, arXiv:1805.02867), the sums by the same
    factors, so that shares of blocks add up to one: what tokens' vectors have in common, most of them, cancels in G.
    A block has about `most` columns (docs/decisions/0043 has the tables). With `most_in_integers` a head that is codes
    and nothing behind them is multiplied in integers (integer_head.py), in blocks of about so many.
    """

    most: int = 2048
    most_in_integers: int | None = None

    @property
    def op_type(self) -> str:
        return OP_TYPE

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        """A walk through the vocabulary (token_blocks.py), and the label's own part behind it."""
        h, labels = operands(node)
        assert h.dtype is not None
        learns = bool(node.outputs[1].uses())
        head = _Head(op, node, self.most_in_integers is not None)
        one_each = op.Concat(op.Shape(h, start=0, end=1), op.Constant(value_ints=[1]), axis=0)
        least = float(np.finfo(h.dtype.numpy()).min)
        begun = [shaped(filled(op, value, one_each, h), [dims(h)[0], 1], h) for value in (least, 0.0, 0.0)]
        if learns:
            begun.append(annotate(filled(op, 0.0, op.Shape(h), h), h))
        column = op.Unsqueeze(labels, [-1])

        def further(inner: OpBuilder, block: Block, kept: Sequence[ir.Value]) -> Sequence[ir.Value]:
            return _further(inner, head, h, column, block, kept)

        most = self.most if head.integers is None or self.most_in_integers is None else self.most_in_integers
        top, total, own, *slopes = walk(op, head.columns, most, head.axes, begun, further)
        losses = op.Squeeze(op.Add(op.Sub(top, own), op.Log(total)), [-1])
        return [losses, op.Sub(op.Div(slopes[0], total), head.slope_at(op, h, labels)) if learns else h]


def _further(
    op: OpBuilder, head: _Head, h: ir.Value, label: ir.Value, block: Block, kept: Sequence[ir.Value]
) -> list[ir.Value]:
    """m, s and z_y `[rows, 1]`, and the sum of G where it is asked for, from those before the block."""
    before, sum_before, own, *slopes = kept
    z, pull = head.logits(op, h, block.parts)
    at = op.Sub(label, block.first)
    nearest = op.Max(op.Min(at, op.Sub(op.Sub(block.behind, block.first), 1)), 0)
    chosen = op.Mul(op.GatherElements(z, nearest, axis=-1), indicator(op, op.Equal(at, nearest), z))
    here = op.ReduceMax(z, [-1], keepdims=1)
    e = annotate(op.Exp(op.Sub(z, here)), z)
    top = annotate(op.Max(before, here), before)
    fade, share = (op.Exp(op.Sub(x, top)) for x in (before, here))
    total = op.Add(op.Mul(sum_before, fade), op.Mul(op.ReduceSum(e, [-1], keepdims=1), share))
    made = [top, annotate(total, before), annotate(op.Add(own, chosen), own)]
    if not slopes:
        return made
    slope = op.Add(op.Mul(slopes[0], fade), op.Mul(pull(op, e), share))
    return [*made, annotate(slope, h)]


class _Head:
    """The body of a TokenLoss: a product, and what treats every logit alone. It can be computed of some tokens."""

    def __init__(self, op: OpBuilder, node: ir.Node, integers: bool) -> None:
        self.node, self.body = node, node.attributes["head"].as_graph()
        self.product, *self.behind = self.body
        self.made = {*self.body.inputs, *(y for node in self.body for y in node.outputs)}
        size = dims(self.body.outputs[0])[-1]
        assert isinstance(size, int)
        self.columns, self.of_codes = size, self.product.op_type == VOCABULARY_PRODUCT
        self.axes = self._axes()
        h, _ = operands(node)
        whole = self.of_codes and not self.behind and h.dtype == ir.DataType.FLOAT
        self.integers = IntegerHead(op, h) if integers and whole else None

    def logits(self, op: OpBuilder, h: ir.Value, parts: Mapping[ir.Value, ir.Value]) -> tuple[ir.Value, Pull]:
        """z of the tokens whose parts of the constants these are, and the way back."""
        copies = {self.body.inputs[0]: h, **parts}
        begun, tokens = len(op.builder.graph), self._tokens(parts)
        if self.of_codes:
            codes, scale, *bias = self._weights(copies)
            if self.integers is not None:
                return self.integers.block(op, codes, scale, bias[0] if bias else None)
            z = scaled(op, product_of_codes(op, h, codes), scale, bias[0] if bias else None)
            copies[self.product.outputs[0]] = z
        for node in copy_nodes(op, self.behind if self.of_codes else self.body, copies):
            shaped(node.outputs[0], [dims(h)[0], tokens], h)
        nodes, z = list(op.builder.graph)[begun:], copies[self.body.outputs[0]]
        return z, lambda op, dz: self.pulled(op, nodes, z, dz, h)

    def slope_at(self, op: OpBuilder, h: ir.Value, labels: ir.Value) -> ir.Value:
        """f_y'(h) `[rows, width]`: of every row, that of its own token's logit."""
        one_each = [dims(h)[0], 1]

        def taken(x: ir.Value, axis: int) -> ir.Value:
            y = op.Gather(x, labels, axis=axis)
            if rank(x) == 1:
                return shaped(op.Unsqueeze(y, [-1]), one_each, x)
            return shaped(y if axis == 0 else op.Transpose(y, perm=[1, 0]), dims(h), x)

        copies = {x: taken(x, axis) for x, axis in self.axes.items()}
        begun = len(op.builder.graph)
        w, *bias = self._weights(copies)
        if self.of_codes:
            scale, *bias = bias
            w = annotate(op.Mul(real_numbers(op, w, h), scale), h)
        z = shaped(op.ReduceSum(annotate(op.Mul(h, w), h), [-1], keepdims=1), one_each, h)
        copies[self.product.outputs[0]] = shaped(op.Add(z, bias[0]), one_each, h) if bias else z
        for node in copy_nodes(op, self.behind, copies):
            shaped(node.outputs[0], one_each, h)
        z = copies[self.body.outputs[0]]
        nodes = list(op.builder.graph)[begun:]
        return self.pulled(op, nodes, z, annotate(filled(op, 1.0, op.Shape(z), z), z), h)

    def pulled(self, op: OpBuilder, nodes: Sequence[ir.Node], z: ir.Value, dz: ir.Value, h: ir.Value) -> ir.Value:
        """The pull-back of dz through the nodes that make z of h."""
        found = backward.walk_back(op, nodes, {z: dz}, [h])
        if found.blocked:
            raise refuse(self.node, f"has {'; '.join(map(str, found.blocked.values()))} in its body")
        return found.of[h]

    def _weights(self, copies: Mapping[ir.Value, ir.Value]) -> list[ir.Value]:
        """What the product reads beside h, or copies of it."""
        return [copies.get(x, x) for x in self.product.inputs[1:] if x is not None]

    def _axes(self) -> dict[ir.Value, int]:
        """What the body reads of every token, and the axis of its tokens: the matrix, and vectors."""
        matrix, *vectors = (x for node in self.body for x in node.inputs if x is not None and x not in self.made)
        axis = 0 if self.of_codes or self.product.attributes.get_int("transB", 0) else 1
        each = [x for x in vectors if x.shape is not None and list(dims(x)) == [self.columns]]
        return {matrix: axis, **dict.fromkeys(each, 0)}

    def _tokens(self, parts: Mapping[ir.Value, ir.Value]) -> Dim:
        """The number of tokens in these parts."""
        matrix, axis = next(iter(self.axes.items()))
        return dims(parts[matrix])[axis]


TOKEN_LOSS = TokenLoss()
INTEGER_TOKEN_LOSS = TokenLoss(most_in_integers=1024)
