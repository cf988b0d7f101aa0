"""Quantize a base: frozen matrices become codes of 4, 7 or 8 bits, tables of embeddings codes of 8.

A product and its bias become one QuantizedProduct (composites/quantized_product.py), BlockProduct
(composites/block_product.py) or, from hidden states to logits, VocabularyProduct (composites/vocabulary_product.py).
Insertion points, their ids and every value's name stay as they are. Convolutions stay real, and so does what a plan
says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites.block_product import BLOCK_PRODUCT, Blocks
from edgelora_tools.composites.quantized_product import (
    LARGEST,
    QUANTIZED_PRODUCT,
    ZERO,
    codes_of,
)
from edgelora_tools.composites.vocabulary_product import VOCABULARY_PRODUCT, token_codes
from edgelora_tools.frozen import is_frozen
from edgelora_tools.gradients.shapes import rank
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.rounding import round_blocks

_TABLE_CODE = 127
_SMALLEST_TABLE = 4096  # elements


class Rung(StrEnum):
    """How a product is computed: in integers, the fastest first; by weights of 4 or 8 bits in blocks; by
    weights of 8 bits with a scale for every token of a vocabulary; in float32.

    By blocks, the input's blocks become bytes too where the runtime is faster so; by weights alone they may not. Own
    codes are those that the source's matrix was made of.
    """

    TENSOR_7 = "int8, weights of 7 bits"
    TENSOR_8 = "int8"
    ROWS_7 = "int8 by rows, weights of 7 bits"
    ROWS_8 = "int8 by rows"
    CHANNELS_8 = "int8 by rows, channels apart"
    DIGITS_8 = "int8 by rows, two digits"
    OWN_BLOCKS_4 = "own int4 codes by blocks"
    OWN_WEIGHTS_4 = "own int4 codes alone"
    BLOCKS_4 = "int4 by blocks"
    BLOCKS_8 = "int8 by blocks"
    WEIGHTS_8 = "int8 weights alone"
    TOKENS_8 = "int8 by tokens"
    REAL = "float32"

    @property
    def by_tensor(self) -> bool:
        """Whether all of the input has one scale, so that rows depend on each other."""
        return self in (Rung.TENSOR_7, Rung.TENSOR_8)

    @property
    def by_rows(self) -> bool:
        """Whether each row of the input has a scale of its own."""
        return self in (Rung.ROWS_7, Rung.ROWS_8, Rung.CHANNELS_8, Rung.DIGITS_8)

    @property
    def digits(self) -> int:
        """How many codes a number of the input has."""
        return 2 if self is Rung.DIGITS_8 else 1

    @property
    def bits_back(self) -> int:
        """Of a weight's code in the backward pass: where the forward pass takes pains, 7 would be the larger error."""
        return 8 if self in (Rung.CHANNELS_8, Rung.DIGITS_8) else 7

    @property
    def in_blocks(self) -> bool:
        """Whether weights have a scale for each block."""
        return self.own or self in (Rung.BLOCKS_4, Rung.BLOCKS_8, Rung.WEIGHTS_8)

    @property
    def own(self) -> bool:
        """Whether the codes are those that the matrix was made of."""
        return self in (Rung.OWN_BLOCKS_4, Rung.OWN_WEIGHTS_4)

    @property
    def rounds(self) -> bool:
        """Whether blocks of the input may become bytes."""
        return self not in (Rung.OWN_WEIGHTS_4, Rung.WEIGHTS_8)

    @property
    def bits(self) -> int:
        """Of a weight's code."""
        return 4 if self.own or self is Rung.BLOCKS_4 else 7 if self in (Rung.TENSOR_7, Rung.ROWS_7) else 8


@dataclass(frozen=True)
class Choice:
    """A product's rung. In integers: what its input's channels are multiplied by first (`even` `[in]`), if anything,
    0 where a channel is multiplied in real numbers, and the code of 0 in a row. In blocks: the codes, if they are not
    the nearest."""

    rung: Rung = Rung.ROWS_8
    even: NDArray[np.float32] | None = None
    middle: int = ZERO
    blocks: Blocks | None = None


Plan = Mapping[str, Choice]
"""The choice for each weight, by its name."""


@dataclass(frozen=True)
class Product:
    """A frozen product of the base: its node, its matrix as an initializer, and the Add that is its bias, if any."""

    node: ir.Node
    weight: ir.Value
    bias: tuple[ir.Node, ir.Value] | None

    @property
    def turned(self) -> bool:
        """Whether the initializer is `[out, in]`."""
        return self.node.op_type == "Gemm" and bool(self.node.attributes.get_int("transB", 0))

    @property
    def matrix(self) -> NDArray[np.float32]:
        """W `[in, out]`."""
        assert self.weight.const_value is not None
        w = self.weight.const_value.numpy()
        return w.T if self.turned else w


def products(model: ir.Model) -> list[Product]:
    """The products of an activation by a real matrix that is an initializer, in the order of the graph."""
    found = (_product(node) for node in model.graph)
    return [product for product in found if product is not None]


def quantize(model: ir.Model, plan: Plan) -> ir.Model:
    """Quantize every product by the choice for its weight's name, and every table; in place.

    A table that is a head's matrix too reads the head's codes.
    """
    chosen = [(product, plan.get(str(product.weight.name), Choice())) for product in products(model)]
    op = GraphBuilder(free_names(model.graph)).op  # which may rename weights
    for product, choice in chosen:
        if choice.rung is not Rung.REAL:
            _quantize_product(model.graph, product, choice)
    for node in list(model.graph):
        _quantize_table(op, node)
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model


def _product(node: ir.Node) -> Product | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return None
    x, weight = node.inputs[:2]
    if x is None or weight is None or is_frozen(x) or not _is_matrix(weight) or x.dtype != ir.DataType.FLOAT:
        return None
    attributes = node.attributes
    if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1.0:
        return None
    if node.op_type == "MatMul":
        return Product(node, weight, _added(node.outputs[0]))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return Product(node, weight, _added(node.outputs[0]))
    plain = _is_vector(bias, node) and attributes.get_float("beta", 1.0) == 1.0
    return Product(node, weight, (node, bias)) if plain else None


def _is_matrix(x: ir.Value) -> bool:
    tensor = x.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2 and tensor.size > 0


def _is_vector(bias: ir.Value, node: ir.Node) -> bool:
    """Whether a bias is one real number for every output of the product."""
    tensor, weight = bias.const_value, node.inputs[1]
    if tensor is None or weight is None or weight.const_value is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
    return tuple(tensor.shape.numpy()) == (weight.const_value.shape.numpy()[0 if turned else 1],)


def _added(y: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a bias to a product, if nothing else reads the product."""
    users = list(y.uses())
    if len(users) != 1 or y.is_graph_output() or users[0][0].op_type != "Add":
        return None
    add, node = users[0][0], y.producer()
    other = next((x for x in add.inputs if x is not y), None)
    return (add, other) if other is not None and node is not None and _is_vector(other, node) else None


def _quantize_product(graph: ir.Graph, product: Product, choice: Choice) -> None:
    old, name, w = product.node, str(product.weight.name), product.matrix
    last, bias = product.bias if product.bias is not None else (old, None)
    if choice.rung is Rung.TOKENS_8:
        kind, (codes, scale) = VOCABULARY_PRODUCT, token_codes(w)
        weights, further = _initializers(graph, name, {"codes8": codes, "scale": scale}), list[ir.Value | None]()
        attributes = {"product": old.op_type}
    elif choice.rung.in_blocks:
        kind, blocks = BLOCK_PRODUCT, choice.blocks or round_blocks(w, choice.rung.bits)
        weights = _initializers(graph, name, dict(zip(("codes", "scale", "zero"), blocks.packed(), strict=True)))
        further = _initializers(graph, name, {"offset": blocks.offset})
        attributes = {"inputs": w.shape[0], "outputs": w.shape[1], "bits": blocks.bits, "block": blocks.block}
        attributes |= {"rounds": int(choice.rung.rounds), "product": old.op_type}
    else:
        kind, (codes, scale) = QUANTIZED_PRODUCT, product_codes(w, choice)
        weights = [*_initializers(graph, name, {"codes": codes, "scale": scale}), _of_input(graph, "even", choice.even)]
        apart = np.zeros(0, np.int64) if choice.even is None else np.flatnonzero(choice.even == 0).astype(np.int64)
        further = list[ir.Value | None]()
        if len(apart):
            further = [_of_input(graph, "channels", apart), *_initializers(graph, name, {"kept": w[apart]})]
        attributes = {"rows": choice.middle if choice.rung.by_rows else 0, "digits": choice.rung.digits}
        attributes |= {"back": choice.rung.bits_back, "product": old.op_type}
    node = ir.node(kind.op_type, [old.inputs[0], *weights, bias, *further], attributes, domain=DOMAIN, name=old.name)
    node.metadata_props.update(old.metadata_props)
    y, new = last.outputs[0], node.outputs[0]
    new.shape, new.type, new.name = y.shape, y.type, y.name
    graph.opset_imports[DOMAIN] = 1
    graph.insert_before(last, node)
    y.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(last, safe=True)
    if last is not old:
        graph.remove(old, safe=True)


def _initializers(graph: ir.Graph, name: str, arrays: Mapping[str, NDArray | None]) -> list[ir.Value | None]:
    """Arrays as initializers named after the weight, made once; what is absent stays so."""
    made: list[ir.Value | None] = []
    for what, array in arrays.items():
        known = graph.initializers.get(f"{name}.{what}")
        made.append(known if known is not None or array is None else _register(graph, f"{name}.{what}", array))
    return made


def _of_input(graph: ir.Graph, what: str, array: NDArray | None) -> ir.Value | None:
    """What is the same for all products of an input is one initializer, so that its codes are made once for all."""
    if array is None:
        return None
    name = f"{what}.{blake2b(array.tobytes(), digest_size=8).hexdigest()}"
    return graph.initializers.get(name) or _register(graph, name, array)


def product_codes(w: NDArray[np.float32], choice: Choice) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(Wq, s) with W ≈ t∘Wq∘s, but for the rows of channels of which t is 0."""
    if choice.even is not None:
        t = choice.even[:, None]
        w = np.divide(w, t, out=np.zeros_like(w), where=t != 0)
    return codes_of(w, LARGEST[choice.rung.bits], axis=1)


def _register(graph: ir.Graph, name: str, array: NDArray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    assert value.const_value is not None
    value.shape, value.dtype = ir.Shape(list(array.shape)), value.const_value.dtype
    graph.register_initializer(value)
    return value


def _quantize_table(op: OpBuilder, node: ir.Node) -> None:
    """Rows of a table T as s∘Cast(rows of Tq), one scale a row; unless T is a product's matrix too."""
    if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or node.attributes.get_int("axis", 0) != 0:
        return
    table, indices = node.inputs
    if table is None or indices is None or not _is_matrix(table) or is_frozen(indices) or indices.shape is None:
        return
    assert table.const_value is not None
    graph, (y,) = op.builder.graph, node.outputs
    names = (f"{table.name}.codes8", f"{table.name}.scale8")
    small = table.const_value.size < _SMALLEST_TABLE and names[0] not in graph.initializers
    if small or any(user.op_type != "Gather" for user, _ in table.uses()):
        return
    if names[1] not in graph.initializers:
        codes, scale = codes_of(table.const_value.numpy(), _TABLE_CODE, axis=0)
        _initializers(graph, str(table.name), {"codes8": codes, "scale8": scale[:, None]})
    rows = op.Gather(graph.initializers[names[0]], indices)
    rows.dtype, rows.shape = ir.DataType.INT8, y.shape
    rows.producer().metadata_props.update(node.metadata_props)
    scales = op.Gather(graph.initializers[names[1]], indices)
    scales.dtype, scales.shape = ir.DataType.FLOAT, ir.Shape([*indices.shape, 1])
    real = op.Cast(rows, to=ir.DataType.FLOAT)
    real.dtype, real.shape = ir.DataType.FLOAT, y.shape
    made = op.Mul(real, scales)
    made.name, y.name = y.name, None
    made.shape, made.type = y.shape, y.type
    y.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    assert rank(made) == len(indices.shape) + 1
