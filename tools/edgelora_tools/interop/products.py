"""Where a point's adapter stands in LoRA's inference graph, and the frozen product behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgelora.errors import ConversionError
from edgelora.manifest import InsertionPoint
from edgelora_tools.methods.base import Change

_VIEWS = ("Reshape", "Flatten", "Identity")
_PRODUCTS = ("MatMul", "Gemm", "Conv")
Slot = tuple[ir.Node, int]  # an input of a node


@dataclass(frozen=True)
class Sum:
    """`adapted` is `base` and what an adapter adds to it."""

    base: ir.Value
    adapted: ir.Value


@dataclass(frozen=True)
class Use(Sum):
    """Where the graph adds a point's adapter, what A and B' make of x.

    `factors` `[out]` are those of a normalization that is in the constants here, and that multiply B' (None: none).
    """

    point: InsertionPoint
    x: ir.Value
    factors: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Product:
    """The frozen product behind a use's base, and where each bias is read that is added to it."""

    node: ir.Node
    biases: tuple[Slot, ...] = ()

    @property
    def is_transposed(self) -> bool:
        """Whether the weight lies as `[out, in]`."""
        return self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) == 1


def find_uses(graph: ir.Graph, point: InsertionPoint) -> Iterator[Use]:
    """The sums of this point's adapter: Gemm(x·A, B', y), or Add(y, (x·A)·B') also with convolutions."""
    a = _input(graph, point.input_a)
    b = _input(graph, point.input_b)
    for first, _ in a.uses():
        x, h = first.inputs[0], first.outputs[0]
        for second, _ in h.uses():
            factors = None
            scaled = second.inputs[1].producer() if second.inputs[1] is not None else None
            if scaled is not None and scaled.op_type == "Mul" and b in scaled.inputs:
                (factor,) = (v for v in scaled.inputs if v is not b)
                assert factor is not None and factor.const_value is not None
                factors = factor.const_value.numpy().astype(np.float64).reshape(-1)
            if x is None or (factors is None and b not in second.inputs):
                raise ConversionError(
                    f"{point.id}: {second.op_type} reads x·A: another bundle's graph than this version's"
                )
            if second.op_type == "Gemm":
                base, adapted = second.inputs[2], second.outputs[0]
            else:
                (add, _) = next(iter(second.outputs[0].uses()))
                base = next((v for v in add.inputs if v is not second.outputs[0]), None)
                adapted = add.outputs[0]
            assert base is not None
            yield Use(base, adapted, point, x, factors)


def _input(graph: ir.Graph, name: str) -> ir.Value:
    return next(value for value in graph.inputs if value.name == name)


def find_product(use: Use, change: Change) -> Product | None:
    """The frozen product whose output is the use's base, behind views and its bias, if its constants can change so.

    Nothing else may read what lies between.
    """
    value, reader, biases = use.base, use.adapted.producer(), list[Slot]()
    while (node := value.producer()) is not None:
        if value.is_graph_output() or any(user is not reader for user, _ in value.uses()):
            return None
        following = None
        if node.op_type in _PRODUCTS and node.domain in ("", "ai.onnx"):
            found = Product(node, tuple(biases))
            return _with_own_bias(found, change) if _takes(node, use) else None
        if node.op_type in _VIEWS:
            following = node.inputs[0]
        elif node.op_type == "Add":
            places = [
                i for i, v in enumerate(node.inputs) if v is not None and v.const_value is not None and _is_vector(v)
            ]
            if len(places) == 1:
                biases.append((node, places[0]))
                following = node.inputs[1 - places[0]]
        if following is None:
            return None
        value, reader = following, node
    return None


def _with_own_bias(product: Product, change: Change) -> Product | None:
    """The product with the bias that it reads itself.

    None where the bias changes, and there are several, or one that is no vector of channels.
    """
    node, biases = product.node, product.biases
    own = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    if change.bias is None or (own is None and not biases):
        return product
    plain = own is None or (own.const_value is not None and node.attributes.get_float("beta", 1.0) == 1.0)
    if len(biases) + (own is not None) > 1 or (biases and node.op_type == "Conv") or not plain:
        return None
    return replace(product, biases=biases or ((node, 2),))


def _takes(product: ir.Node, use: Use) -> bool:
    """Whether x·W' is this product with another weight."""
    x, weight = product.inputs[:2]
    if x is None or weight is None or weight.const_value is None or weight.dtype != ir.DataType.FLOAT:
        return False
    if _seen(x) is not _seen(use.x):
        return False
    attributes = product.attributes
    if product.op_type == "Gemm" and (attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1.0):
        return False
    shape = _weight_shape(use.point)
    wanted = shape[::-1] if product.op_type == "Gemm" and attributes.get_int("transB", 0) else shape
    return tuple(weight.const_value.shape.numpy()) == wanted


def _weight_shape(point: InsertionPoint) -> tuple[int, ...]:
    if point.kernel:
        return (point.out_features, point.in_features // point.groups, *point.kernel)
    return (point.in_features, point.out_features)


def _is_vector(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) <= 1


def _seen(value: ir.Value) -> ir.Value:
    """The value before views: a product reads the same rows from each, for its width is the same."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
