"""Products of codes are summed in whole numbers, so that a sum beside the middle of two codes falls as integers do.

Y = Q(X·W + b + δ), of the real numbers that codes stand for, rounds while it sums, and again where it divides by the
scale of Y: of some hundred thousand outputs one lies so near a middle that it becomes another code than an integer
kernel's. Here p = Σ (x − z_x)·(w − z_w) + b/(s_x·s_w) is a sum of whole numbers in float32, exact in any order while
its parts stay below 2²⁴, and Y = Round((p + δ/(s_x·s_w))·m) + z_y with m = s_x·s_w/s_y: one product, rounded once, as
in the kernels of XNNPACK and ONNX Runtime. What an adapter adds, δ = h·B, is divided at its factor B, which is small,
and ONNX Runtime still fuses the sum with the product.

For graphs of which no gradient is taken: a training graph's numbers are these but for such codes. Convolutions and
MatMuls with nothing but a ReLU behind them stay: ONNX Runtime makes integer products of those when it loads a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.frozen import is_frozen, is_real
from edgelora_tools.gradients.nodes import float_of, operand
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.insertion import numbered
from edgelora_tools.passes.coded_products import VIEWS, CodedWeight, array, decoder_of, numbers_of, one_scale, weight_of
from edgelora_tools.passes.free_names import free_names


def whole_sums(model: ir.Model) -> ir.Model:
    """Sum every product of codes that becomes codes in whole numbers, in place; sums of codes read whole ones too."""
    sums = _WholeSums(GraphBuilder(free_names(model.graph)).op)
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx"):
            sums.quantizer(node)
        elif node.op_type == "Div" and node.domain in ("", "ai.onnx"):
            sums.division(node)
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model


@dataclass(frozen=True)
class _Sum:
    """A product of codes and what is added to it, in units of `scales`: one, or one for each output, to broadcast."""

    value: ir.Value
    scales: np.ndarray


class _WholeSums:
    """The pass on one graph. It keeps the whole numbers of activations, which several products may read."""

    def __init__(self, op: OpBuilder) -> None:
        self._op = op
        self._known: dict[ir.Value, ir.Value] = {}
        self._names = set(op.builder.graph.initializers)

    def division(self, node: ir.Node) -> None:
        """Codes that are decoded and divided by their scale are whole numbers as they are."""
        x, by = node.inputs
        found = decoder_of(x)
        if x is not None and found is not None and float_of(by) == one_scale(found):
            node.outputs[0].replace_all_uses_with(self._whole(x))

    def quantizer(self, node: ir.Node) -> None:
        """Let a QuantizeLinear round a sum in units of its scale."""
        y, scale = node.inputs[0], one_scale(node)
        if y is None or scale is None or _is_fused(y, operand(node, 2)):
            return
        made = self._over(y, node, scale)
        if made is not None:
            node.replace_input_with(0, made)
            node.replace_input_with(1, self._one(node))

    def _over(self, y: ir.Value, reader: ir.Node, unit: np.float32) -> ir.Value | None:
        """`y`, which `reader` alone reads, over `unit`; None where no product of codes is in it."""
        node = y.producer()
        if node is None or node.op_type not in ("Relu", "Clip", *VIEWS) or not _read_by(y, reader):
            found = self._sum(y, reader)
            if found is None:
                return None
            return _like(y, self._op.Mul(found.value, self._constant(found.scales / unit, "step")))
        x, rest = node.inputs[0], node.inputs[1:]
        bounds = [float_of(b) for b in rest if b is not None] if node.op_type == "Clip" else []
        inner = None if x is None or None in bounds else self._over(x, node, unit)
        if inner is None:
            return None
        if bounds:
            rest = [b and self._constant(np.float32(float_of(b)) / unit, f"{b.name}.bound") for b in rest]
        return _like(y, getattr(self._op, node.op_type)(inner, *rest, **node.attributes))

    def _sum(self, y: ir.Value, reader: ir.Node) -> _Sum | None:
        """`y`, if it is a product of codes, a multiple of one, or a sum with one. A MatMul's bias is added at once."""
        node = y.producer()
        if node is None or node.domain not in ("", "ai.onnx") or not _read_by(y, reader):
            return None
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            return self._product(node, operand(node, 2))
        for x, other in (node.inputs, node.inputs[::-1]) if node.op_type in ("Add", "Mul") else ():
            product = None if x is None else x.producer()
            if x is None or other is None or product is None:
                continue
            if node.op_type == "Add" and product.op_type == "MatMul" and is_real(other) and _read_by(x, node):
                return self._product(product, other)
            inner = self._sum(x, node)
            if inner is not None:
                by = self._op.Mul(inner.value, other) if node.op_type == "Mul" else None
                return _Sum(_like(y, by or self._op.Add(inner.value, self._beside(other, inner))), inner.scales)
        return None

    def _beside(self, y: ir.Value, inner: _Sum) -> ir.Value:
        """What is added to a product of codes, in its units: of an adapter's product, its second factor is."""
        node, share = y.producer(), self._constant(1 / inner.scales, "share")
        b = None if node is None or node.op_type not in ("Conv", "MatMul") else node.inputs[1]
        if node is None or b is None or len(node.inputs) > 2 or not _has_outputs(b, node, inner.scales):
            return _like(y, self._op.Mul(y, share))
        if node.op_type == "Conv" and inner.scales.ndim:
            share = self._constant(1 / inner.scales[..., None], "share")
        scaled = _like(b, self._op.Mul(b, share))
        return _like(y, getattr(self._op, node.op_type)(node.inputs[0], scaled, **node.attributes))

    def _product(self, node: ir.Node, bias: ir.Value | None) -> _Sum | None:
        """p, if the node is a product of codes by constant ones, with a bias that is constant too."""
        x, found, weight = node.inputs[0], decoder_of(node.inputs[0]), weight_of(node)
        added = None if bias is None else numbers_of(bias)
        if x is None or found is None or weight is None or (bias is not None and added is None):
            return None
        scales = np.asarray(array(found.inputs[1]).reshape(()) * weight.scale)
        inputs = [self._whole(x), self._whole_weight(weight)]
        if added is not None:
            inputs.append(
                self._constant(_whole_if_near(added / scales.astype(np.float64)), f"{weight.name}.bias.whole")
            )
        made = getattr(self._op, node.op_type)(*inputs[: 2 if node.op_type == "MatMul" else 3], **node.attributes)
        _like(node.outputs[0], made)
        if node.op_type == "MatMul" and added is not None:
            made = _like(made, self._op.Add(made, inputs[2]))
        if node.op_type == "Conv" and scales.ndim:
            scales = scales.reshape(-1, *[1] * (array(weight.decoder.inputs[0]).ndim - 2))
        return _Sum(made, scales)

    def _whole(self, x: ir.Value) -> ir.Value:
        """Decoded codes over their scale, in the views that `x` is of them."""
        node = x.producer()
        assert node is not None and node.inputs[0] is not None
        if x not in self._known:
            if node.op_type == "DequantizeLinear":
                codes, _, *zero = node.inputs
                made = self._op.DequantizeLinear(codes, self._one(node), *zero, **node.attributes)
            else:
                inner = self._whole(node.inputs[0])
                made = getattr(self._op, node.op_type)(inner, *node.inputs[1:], **node.attributes)
            self._known[x] = _like(x, made)
        return self._known[x]

    def _whole_weight(self, weight: CodedWeight) -> ir.Value:
        codes, _, *zero = weight.decoder.inputs
        made = self._op.DequantizeLinear(codes, self._one(weight.decoder), *zero, **weight.decoder.attributes)
        return _like(weight.decoder.outputs[0], made)

    def _one(self, node: ir.Node) -> ir.Value:
        """1 in the place of the scales of a quantizer or a decoder."""
        return self._constant(np.ones_like(array(node.inputs[1])), "unit")

    def _constant(self, numbers: np.ndarray | np.floating, name: str) -> ir.Value:
        tensor = ir.tensor(np.asarray(numbers, np.float32), name=numbered(name, self._names))
        return self._op.builder.initializer(tensor, qualify=False)


def _whole_if_near(bias: np.ndarray) -> np.ndarray:
    """A bias that is in codes is whole but for the rounding of its scale; any other stays as it is."""
    nearest = np.rint(bias)
    return nearest if (np.abs(bias - nearest) <= 1e-3 + 1e-6 * np.abs(bias)).all() else bias


def _like(old: ir.Value, new: ir.Value) -> ir.Value:
    """`new`, of the shape and the type of `old`."""
    new.shape, new.type = old.shape, old.type
    return new


def _is_fused(y: ir.Value, zero: ir.Value | None) -> bool:
    """Whether ONNX Runtime makes an integer product of what becomes codes as it stands."""
    node, lowest = y.producer(), zero is not None and int(array(zero)) == np.iinfo(array(zero).dtype).min
    while node is not None and node.op_type == "Relu" and lowest and _read_by(node.outputs[0]):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node is not None and node.op_type in ("Conv", "MatMul") and _read_by(node.outputs[0])


def _has_outputs(b: ir.Value, product: ir.Node, scales: np.ndarray) -> bool:
    """Whether B, a product's second factor, is fed, and has an output for each scale."""
    if is_frozen(b) or b.shape is None or scales.ndim == 0:
        return not is_frozen(b)
    return dims(b)[0 if product.op_type == "Conv" else -1] == scales.size


def _read_by(y: ir.Value, reader: ir.Node | None = None) -> bool:
    """Whether one node alone reads the value: `reader`, if it is named."""
    readers = [node for node, _ in y.uses()]
    return len(readers) == 1 and not y.is_graph_output() and readers[0] in (reader or readers[0],)
