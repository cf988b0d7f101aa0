"""LoRA: y = x·W + s·(x·A)·B, A [in, r], B [r, out], or convolutions (Hu et al. 2021, arXiv:2106.09685).

No scale stands in the graph: the host feeds B' = s·B and multiplies dB' by s (docs/decisions/0002). The node is
the delta alone; the base product and the Add stay outside, so that a pass can change the frozen product
without touching the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import LORA_GRAPHS, RECURRENT, AdapterInput, InsertionPoint
from edgelora_tools.gradients import Thunk, gradient_rule
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.shapes import annotate, dims, flatten_rows, rank, reshape_like, size_of
from edgelora_tools.insertion import Site, Use
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.methods.at_sites import AtSites
from edgelora_tools.methods.base import Change, Doubles, Floats, sites_at

OP_TYPE = "Lora"


class Lora(AtSites):
    """Low-rank adaptation of a linear product."""

    graphs = LORA_GRAPHS

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        return sites_at(model, points)

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        r = f"{point.id}.r"
        if point.kernel:
            inner = r if point.groups == 1 else f"{r}/{point.groups}"
            a: tuple[int | str, ...] = (r, point.in_features, *point.kernel)
            b: tuple[int | str, ...] = (point.out_features, inner, *(1 for _ in point.kernel))
        else:
            a, b = (point.in_features, r), (r, point.out_features)
        return AdapterInput(point.input_a, a, 0.0), AdapterInput(point.input_b, b, 0.0)

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        if use.product.op_type in RECURRENT:
            _widen(op, use.product, x, inputs)
            return y
        return op.Add(y, self.delta(op, use.product, x, inputs))

    def merging(self, point: InsertionPoint, feeds: Mapping[str, Floats]) -> Change | None:
        """W + A·B'. An adapter of a convolution in groups reads all channels, its kernels those of their groups."""
        return None if point.groups != 1 else Change(weight=lambda w: w + self.product(point, feeds))

    def product(self, point: InsertionPoint, feeds: Mapping[str, Floats]) -> Doubles:
        """A·B', `[in, out]`, or of a convolution `[out, in, *kernel]`."""
        a, b = (feeds[name].astype(np.float64) for name in (point.input_a, point.input_b))
        return np.tensordot(b.reshape(b.shape[:2]), a, 1) if point.kernel else a @ b

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None

    def delta(self, op: OpBuilder, product: ir.Node, x: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        """Emit Lora(X, A, B) -> (Y, H): H = X·A `[..., r]`, Y = H·B `[..., out]`; or a convolution's delta."""
        a, b = inputs
        if rank(a) > 2:
            return _convolution(op, product, x, a, b)
        assert x.shape is not None and a.shape is not None and b.shape is not None
        y, h = op.builder.opset(DOMAIN, 1).Lora(x, a, b, _outputs=2)
        for value, last in ((y, b.shape[1]), (h, a.shape[1])):
            value.shape, value.type = ir.Shape([*x.shape[:-1], last]), x.type
        return y

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        x, pairs = _operands(node)
        h = op.MatMul(x, _joined(op, [a for a, _ in pairs], axis=1))
        return *(op.MatMul(part, b) for part, (_, b) in zip(_parts(op, h, pairs, -1), pairs, strict=True)), h


def _convolution(op: OpBuilder, product: ir.Node, x: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """H = X ⋆ A with the base's window, Y = H ⋆ B in the base's groups, 1×1 (peft.tuners.lora.layer._ConvNd).

    Plain convolutions, with the gradient rule of Conv: its products have r channels on one side.
    """
    window = {k: v for k, v in product.attributes.items() if k != "group"}
    y = product.outputs[0]
    h = op.Conv(x, a, **window)
    if y.shape is not None and a.shape is not None:
        h.shape, h.type = ir.Shape([y.shape[0], a.shape[0], *y.shape[2:]]), x.type
    return op.Conv(h, b, group=product.attributes.get_int("group", 1), kernel_shape=[1] * (rank(b) - 2))


def _widen(op: OpBuilder, layer: ir.Node, x: ir.Value, inputs: Sequence[ir.Value]) -> None:
    """X·Wᵀ + (X·A)·B = [X, X·A]·[W, Bᵀ]ᵀ: the layer reads r inputs more; X `[.., in]`, W `[directions, gates, in]`.

    The layer stays one node, for its recurrence takes no product of the input that is already made.
    """
    whole, w = layer.inputs[:2]
    a, b = inputs
    assert whole is not None and w is not None
    h = op.MatMul(x, a)
    directions, gates, _ = dims(w)
    by_direction = op.Reshape(b, [0, directions, gates])
    columns = op.Transpose(by_direction, perm=[1, 2, 0])
    wide, weights = op.Concat(whole, h, axis=-1), op.Concat(w, columns, axis=2)
    for value, like, size in ((h, x, dims(a)[1]), (wide, whole, None), (weights, w, None)):
        assert like.shape is not None
        value.shape, value.type = ir.Shape([*like.shape[:-1], size]), like.type
    layer.replace_input_with(0, wide)
    layer.replace_input_with(1, weights)


def _operands(node: ir.Node) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:
    """X and the pairs (A, B)."""
    x, *tensors = operands(node)
    return x, list(zip(tensors[::2], tensors[1::2], strict=True))


def _joined(op: OpBuilder, values: Sequence[ir.Value], axis: int) -> ir.Value:
    return values[0] if len(values) == 1 else op.Concat(*values, axis=axis)


def _parts(
    op: OpBuilder, joined: ir.Value, pairs: Sequence[tuple[ir.Value, ir.Value]], axis: int
) -> Sequence[ir.Value]:
    """What of `joined` belongs to each pair, by their ranks."""
    if len(pairs) == 1:
        return (joined,)
    ranks = op.Concat(*(size_of(op, a, 1) for a, _ in pairs), axis=0)
    parts = op.Split(joined, ranks, axis=axis, _outputs=len(pairs))
    for part, (a, _) in zip(parts, pairs, strict=True):
        sizes = list(dims(joined))
        sizes[axis] = dims(a)[1]
        part.shape, part.type = ir.Shape(sizes), joined.type
    return parts


@gradient_rule(OP_TYPE, domain=DOMAIN)
def lora(op: OpBuilder, node: ir.Node, *dys: ir.Value | None) -> Sequence[Thunk | None]:
    """H = X·A, Y = H·B; no [in, out] matrix is ever formed.

    dH = dY·Bᵀ
    dX = dH·Aᵀ
    dA = Xᵀ·dH, as (dHᵀ·X)ᵀ, which takes half the time
    dB = Hᵀ·dY

    Adapters of one input have the columns of H, dH and A side by side; those whose Y is not read are left out.
    """
    x, pairs = _operands(node)
    reached = [i for i, dy in enumerate(dys) if dy is not None]
    chosen = [pairs[i] for i in reached]
    rows = {i: flatten_rows(op, dy) for i, dy in enumerate(dys) if dy is not None}
    dh = _joined(op, [op.Gemm(rows[i], pairs[i][1], transB=1) for i in reached], axis=1)

    @cache
    def h() -> Sequence[ir.Value]:
        return _parts(op, flatten_rows(op, node.outputs[-1]), pairs, 1)

    @cache
    def da() -> dict[int, ir.Value]:
        turned = op.MatMul(op.Transpose(dh, perm=[1, 0]), flatten_rows(op, x))
        parts = _parts(op, turned, chosen, 0)
        return {
            i: annotate(op.Transpose(part, perm=[1, 0]), pairs[i][0]) for i, part in zip(reached, parts, strict=True)
        }

    def dx() -> ir.Value:
        return reshape_like(op, op.Gemm(dh, _joined(op, [a for a, _ in chosen], axis=1), transB=1), x)

    def of_pair(i: int) -> tuple[Thunk | None, Thunk | None]:
        if i not in rows:
            return None, None
        return lambda: da()[i], lambda: op.Gemm(h()[i], rows[i], transA=1)

    return dx, *(thunk for i in range(len(pairs)) for thunk in of_pair(i))


LORA = Lora()
