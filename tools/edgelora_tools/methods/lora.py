"""LoRA: y = x·W + s·(x·A)·B, A [in, r], B [r, out], or convolutions (Hu et al. 2021, arXiv:2106.09685).

No scale stands in the graph: the host feeds B' = s·B and multiplies dB' by s (docs/decisions/0002). The node is
the delta alone; the base product and the Add stay outside, so that a pass can change the frozen product
without touching the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import LORA_GRAPHS, AdapterInput, InsertionPoint
from edgelora_tools.gradients import Thunk, gradient_rule
from edgelora_tools.gradients.shapes import flatten_rows, rank, reshape_like
from edgelora_tools.insertion import Site, Use
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.methods.base import Floats

OP_TYPE = "Lora"


class Lora:
    """Low-rank adaptation of a linear product."""

    graphs = LORA_GRAPHS

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
        return op.Add(y, self.delta(op, use.product, x, inputs))

    def merged(
        self, point: InsertionPoint, weight: Floats, bias: Floats, feeds: Mapping[str, Floats]
    ) -> tuple[Floats, Floats]:
        a, b = feeds[point.input_a], feeds[point.input_b]
        if not point.kernel:
            return (weight + a @ b).astype(np.float32), bias
        inner = b.shape[1]
        kernels = [
            b[rows, :, *(0 for _ in point.kernel)] @ a[g * inner : (g + 1) * inner].reshape(inner, -1)
            for g, rows in enumerate(np.split(np.arange(point.out_features), point.groups))
        ]
        return (weight + np.concatenate(kernels).reshape(weight.shape)).astype(np.float32), bias

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
        x, a, b = node.inputs
        h = op.MatMul(x, a)
        return op.MatMul(h, b), h


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


@gradient_rule(OP_TYPE, domain=DOMAIN)
def lora(op: OpBuilder, node: ir.Node, dy: ir.Value, dh: None = None) -> Sequence[Thunk | None]:
    """H = X·A, Y = H·B; no [in, out] matrix is ever formed.

    dH = dY·Bᵀ
    dX = dH·Aᵀ
    dA = Xᵀ·dH
    dB = Hᵀ·dY
    """
    x, a, b = node.inputs
    _, h = node.outputs
    assert x is not None and a is not None and b is not None
    dy_rows = flatten_rows(op, dy)
    dh_rows = op.Gemm(dy_rows, b, transB=1)
    return (
        lambda: reshape_like(op, op.Gemm(dh_rows, a, transB=1), x),
        lambda: op.Gemm(flatten_rows(op, x), dh_rows, transA=1),
        lambda: op.Gemm(flatten_rows(op, h), dy_rows, transA=1),
    )


LORA = Lora()
