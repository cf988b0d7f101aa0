"""How many floating-point operations the products of a training step need, counted on the bundle's own graph.

A product Y = A·B costs 2·|Y|·K, with K the length of the sum. The forward pass needs each once. The backward
pass needs dA = dY·Bᵀ where A depends on an adapter, and dB = Aᵀ·dY where B does: each as many operations as
the product itself. Products of frozen weights have no dB, and those before the first adapter no dA. Whatever
recomputes, pads or unpads does not change what is needed: the sizes are those of the batch as it is fed.

Sizes are read by running the inference graph on that batch, with the sizes of the products as outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Product:
    """A node that multiplies: its two factors, its result, and how many products its gradient needs."""

    op: str
    a: str
    b: str
    y: str
    transposed: bool
    gradients: int

    def operations(self, shapes: Shapes) -> int:
        """Of forward and backward pass, at these sizes."""
        if self.op == "Conv":
            length = int(np.prod(shapes[self.b][1:]))
        else:
            length = shapes[self.a][-2 if self.transposed else -1]
        return 2 * int(np.prod(shapes[self.y])) * length * (1 + self.gradients)


def products(graph: onnx.GraphProto, adapter: frozenset[str]) -> list[Product]:
    """The graph's products; `adapter` names the inputs that are trained."""
    active = set(adapter)
    found: list[Product] = []
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type in PRODUCTS:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            gradients = sum(name in active for name in node.input[:2])
            found.append(Product(node.op_type, node.input[0], node.input[1], node.output[0], transposed, gradients))
        if active.intersection(inputs):
            active.update(node.output)
    return found


class OperationCount:
    """Counts the operations of a step on a bundle's inference graph."""

    def __init__(self, path: Path, adapter: frozenset[str]) -> None:
        model = onnx.load(path, load_external_data=False)
        self.products = products(model.graph, adapter)
        names = sorted({name for p in self.products for name in (p.a, p.b, p.y)})
        sizes = {name: f"size of {name}" for name in names}
        model.graph.node.extend(onnx.helper.make_node("Shape", [name], [size]) for name, size in sizes.items())
        del model.graph.output[:]
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(size, onnx.TensorProto.INT64, [None]) for size in sizes.values()
        )
        options: Any = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._names, self._sizes = names, list(sizes.values())
        self._session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {x.name for x in self._session.get_inputs()}

    def step(self, feeds: Mapping[str, Any]) -> int:
        """Operations of one training step on this batch, adapter included."""
        shapes = self._shapes(feeds)
        return sum(product.operations(shapes) for product in self.products)

    def largest(self, feeds: Mapping[str, Any], count: int) -> list[list[int]]:
        """`[rows, length, columns]` of the matrix products on which this batch spends the most, the most first."""
        shapes = self._shapes(feeds)
        spent: Counter[tuple[int, int, int]] = Counter()
        for product in self.products:
            y = shapes[product.y]
            if product.op != "Conv" and len(shapes[product.b]) == 2:
                size = (int(np.prod(y[:-1])), shapes[product.a][-2 if product.transposed else -1], y[-1])
                spent[size] += product.operations(shapes)
        return [list(size) for size, _ in spent.most_common(count)]

    def _shapes(self, feeds: Mapping[str, Any]) -> Shapes:
        made = self._session.run(self._sizes, {n: np.asarray(v) for n, v in feeds.items() if n in self._inputs})
        return {name: tuple(int(d) for d in size) for name, size in zip(self._names, made, strict=True)}
