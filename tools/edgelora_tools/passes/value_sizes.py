"""How many bytes the values of a graph have, and how much its nodes compute, at given sizes of its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConfigError
from edgelora_tools.composites.causal_attend import HALVES
from edgelora_tools.gradients.nodes import ints_of
from edgelora_tools.gradients.shapes import Dim, dims

VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators whose outputs share their input's memory."""
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "MatMulInteger", "ConvInteger"})
_REPEATED = frozenset({"Loop", "Scan"})
_PER_ELEMENT = 8  # operations on an element outside of products
_RANK = 8  # of a dimension that no size is given for: ranks and classes


class ValueSizes:
    """Estimates at these sizes of the inputs' dimensions.

    A dimension inside that does not follow from them is guessed: a value has as many elements as the largest that it is
    made of, a part of a Split its share of them.
    """

    def __init__(self, graph: ir.Graph, sizes: Mapping[str, int]) -> None:
        self._sizes = {HALVES: 2, **sizes}
        named = {d for x in graph.inputs if x.shape is not None for d in dims(x) if isinstance(d, str)}
        self._sizes |= {d: _RANK for d in named if self._size(d) is None}
        self._elements: dict[ir.Value, int] = {}
        self._look_at(graph)

    def elements(self, value: ir.Value) -> int:
        """The number of elements."""
        if value not in self._elements:
            self._elements[value] = self._count(value, 1)
        return self._elements[value]

    def bytes(self, value: ir.Value) -> int:
        """0 for a value of unknown type."""
        return 0 if value.dtype is None else math.ceil(self.elements(value) * value.dtype.itemsize)

    def operations(self, node: ir.Node) -> int:
        """The multiplications of a product, or some operations an element; of a Loop or Scan, those of all rounds."""
        if node.op_type in VIEWS:
            return 0
        if node.op_type in _REPEATED:
            return _rounds(node) * sum(map(self.operations, node.attributes["body"].as_graph()))
        made = sum(self.elements(y) for y in node.outputs)
        a, b = (*node.inputs, None, None)[:2]
        if node.op_type not in _PRODUCTS or a is None or b is None:
            return made * _PER_ELEMENT
        if node.op_type.startswith("Conv"):  # the kernel's weights for an output channel
            return made * self.elements(b) // max((self._size(dims(b)[0]) if b.shape else None) or 1, 1)
        columns = self._size(dims(b)[-2 if node.attributes.get_int("transB", 0) else -1]) if b.shape else None
        return self.elements(a) * columns if columns is not None else made * _PER_ELEMENT

    def _look_at(self, nodes: Iterable[ir.Node], rounds: int | None = None) -> None:
        """Count the elements of what these nodes make; in so many rounds of a Loop, which slices a share in each."""
        for node in nodes:
            if node.op_type in _REPEATED:
                slices = _rounds(node) if node.op_type == "Loop" else 1  # a Scan has cut its inputs itself
                self._look_at(node.attributes["body"].as_graph(), slices)
            read = [x for x in node.inputs if x is not None and (rounds or not x.is_initializer())]
            most = max(map(self.elements, read), default=1)
            share = rounds if rounds and node.op_type == "Slice" else 1
            share = len(node.outputs) if node.op_type == "Split" else share
            self._elements.update((y, self._count(y, -(-most // share))) for y in node.outputs)

    def _count(self, value: ir.Value, most: int) -> int:
        """The elements of a node's output, whose largest input has `most`."""
        if value.shape is None:
            return most
        known = [self._size(d) for d in dims(value)]
        unknown = [d for d, size in zip(dims(value), known, strict=True) if size is None]
        rest = math.prod(size for size in known if size is not None)
        if not unknown:
            return rest
        if len(unknown) == 1 and unknown[0] is not None:
            self._sizes[str(unknown[0])] = max(1, most // max(1, rest))
        return most

    def _size(self, dimension: Dim) -> int | None:
        try:
            return None if dimension is None else max(0, evaluate_dimension(dimension, self._sizes))
        except ConfigError:
            return None


def _rounds(node: ir.Node) -> int:
    """How often a Loop or Scan goes round, once where that is not known beforehand."""
    if node.op_type == "Scan":
        along = node.inputs[-1]
        times = None if along is None or along.shape is None else dims(along)[:1]
    else:
        times = ints_of(node.inputs[0])
    return times[0] if times and isinstance(times[0], int) else 1
