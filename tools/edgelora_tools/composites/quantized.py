"""The products that quantizing a base makes: in integers, by codes in blocks, or by codes of a vocabulary."""

from __future__ import annotations

import onnx_ir as ir

from edgelora_tools.composites.block_product import BLOCK_PRODUCT
from edgelora_tools.composites.quantized_product import QUANTIZED_PRODUCT
from edgelora_tools.composites.vocabulary_product import VOCABULARY_PRODUCT
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.lowering import DOMAIN

QUANTIZED = (QUANTIZED_PRODUCT, BLOCK_PRODUCT, VOCABULARY_PRODUCT)
_NAMES = {one.op_type for one in QUANTIZED}


def is_quantized(node: ir.Node) -> bool:
    """Whether a node is a product of one of these kinds."""
    return node.domain == DOMAIN and node.op_type in _NAMES


def features(node: ir.Node) -> tuple[int, int]:
    """The inputs and the outputs of such a product."""
    if node.op_type == BLOCK_PRODUCT.op_type:
        return node.attributes["inputs"].as_int(), node.attributes["outputs"].as_int()
    codes = node.inputs[1]
    assert codes is not None
    rows, columns = (d for d in dims(codes) if isinstance(d, int))
    return (columns, rows) if node.op_type == VOCABULARY_PRODUCT.op_type else (rows, columns)
