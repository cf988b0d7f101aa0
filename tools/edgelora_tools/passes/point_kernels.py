"""A convolution of one pixel and its adapter become one convolution, by W + B'·A, in training graphs.

What the adapter adds is then never formed as an image, neither forward nor backward: an image has many more numbers
than a kernel. Where it has few places, as behind many strides, the sum of the kernels would cost more.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.frozen import is_real
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunk, gradient_rule
from edgelora_tools.gradients.shapes import annotate, dims
from edgelora_tools.gradients.windows import image_axes
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.image_rows import is_point, is_small

OP_TYPE = "PointKernel"


def join_point_kernels(graph: ir.Graph) -> None:
    """Join every sum of a frozen convolution of one pixel and its adapter's delta, in place."""
    for node in list(graph):
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        for y, delta in (operands(node), operands(node)[::-1]):
            if (found := _found(y, delta)) is not None:
                _join(graph, node, found)
                break


def _found(y: ir.Value, delta: ir.Value) -> tuple[ir.Value, ...] | None:
    """X, W, A, B and the bias, if the values are X ⋆ W + bias and (X ⋆ A) ⋆ B, and nothing else reads them."""
    base, second = _points(y), _points(delta)
    if base is None or second is None or len(second.inputs) > 2:
        return None
    first = _points(operands(second)[0])
    if first is None or len(first.inputs) > 2 or first.inputs[0] is not base.inputs[0]:
        return None
    x, w, *bias = operands(base)
    if not all(map(is_real, (w, *bias))) or any(is_real(n.inputs[1]) for n in (first, second)) or is_small(x):
        return None
    return x, w, operands(first)[1], operands(second)[1], *bias


def _points(y: ir.Value) -> ir.Node | None:
    """The convolution of one pixel, at every place, that makes `y` for one reader."""
    node = y.producer()
    if node is None or y.is_graph_output() or len(y.uses()) != 1:
        return None
    return node if is_point(node) else None


def _join(graph: ir.Graph, add: ir.Node, found: Sequence[ir.Value]) -> None:
    joined = ir.node(OP_TYPE, list(found), domain=DOMAIN, name=add.name)
    joined.metadata_props.update(add.metadata_props)
    new, old = joined.outputs[0], add.outputs[0]
    new.shape, new.type = old.shape, old.type
    new.name, old.name = old.name, None
    graph.insert_before(add, joined)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(add, safe=True)


class PointKernel:
    """PointKernel(X, W, A, B, bias) -> X ⋆ (W + B·A) + bias, bias optional; X `[N, in, …]`, W `[out, in, 1, …]`."""

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        x, w, a, b, *bias = operands(node)
        kernel = op.Unsqueeze(_kernel(op, w, a, b), image_axes(w))
        return (op.Conv(x, kernel, *bias, kernel_shape=[1] * len(image_axes(w))),)


def _kernel(op: OpBuilder, w: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """W + B·A, `[out, in]`."""
    matrix, low, high = (op.Squeeze(v, image_axes(w)) for v in (w, a, b))
    kernel = op.Add(matrix, op.MatMul(high, low))
    kernel.shape, kernel.type = ir.Shape(dims(w)[:2]), w.type
    return kernel


@gradient_rule(OP_TYPE, domain=DOMAIN)
def point_kernel(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Sequence[Thunk | None]:
    """Y = X ⋆ K + bias, K = W + B·A; with the places of an image in one axis, for each image:

    dX = Kᵀ·dY
    dA = Σ dH·Xᵀ, dH = Bᵀ·dY
    dB = Σ dY·Hᵀ, H = A·X
    """
    x, w, a, b, *bias = operands(node)
    axes = image_axes(w)

    def rows(image: ir.Value) -> ir.Value:
        return op.Reshape(image, [0, 0, -1])

    def turned(matrices: ir.Value) -> ir.Value:
        return op.Transpose(matrices, perm=[0, 2, 1])

    def dx() -> ir.Value:
        kernel = op.Unsqueeze(op.Transpose(_kernel(op, w, a, b), perm=[1, 0]), axes)
        return annotate(op.Conv(dy, kernel, kernel_shape=[1] * len(axes)), x)

    def da() -> ir.Value:
        dh = op.MatMul(op.Transpose(op.Squeeze(b, axes), perm=[1, 0]), rows(dy))
        return annotate(op.Unsqueeze(op.ReduceSum(op.MatMul(dh, turned(rows(x))), [0], keepdims=0), axes), a)

    def db() -> ir.Value:
        h = op.MatMul(op.Squeeze(a, axes), rows(x))
        return annotate(op.Unsqueeze(op.ReduceSum(op.MatMul(rows(dy), turned(h)), [0], keepdims=0), axes), b)

    return dx, None, da, db, *(None for _ in bias)


LOWERED = {OP_TYPE: PointKernel()}
