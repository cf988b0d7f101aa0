"""DoRA: y + (x·W)∘h + x·A·B'', and a graph of the columns' lengths (Liu et al. 2024, arXiv:2402.09353).

What h and B'' are, the host makes of the adapter's magnitudes and these lengths (edgelora/methods/dora.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora.methods.dora import GAIN
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.frozen import is_frozen
from edgelora_tools.insertion import Site, Use
from edgelora_tools.methods.at_sites import AtSites
from edgelora_tools.methods.base import AdapterMethod, Change, Floats, sites_at, some_linear
from edgelora_tools.methods.lora import LORA


class Dora(AtSites):
    """LoRA and the length of every column; at a convolution LoRA alone, which its adapters leave out."""

    graphs = "dora"

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        return some_linear("DoRA", sites_at(model, points))

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        gain = AdapterInput(f"{point.id}.{GAIN}", (point.out_features,), 0.0)
        return (*LORA.inputs(point), *(() if point.kernel else (gain,)))

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        a, b, *gain = inputs
        adapted = LORA.adapt(op, use, x, y, (a, b))
        return op.Add(adapted, op.Mul(_without_bias(op, use, y), gain[0])) if gain else adapted

    def merging(self, point: InsertionPoint, feeds: Mapping[str, Floats]) -> Change | None:
        if point.kernel:
            return LORA.merging(point, feeds)
        gain = 1.0 + feeds[f"{point.id}.{GAIN}"].astype(np.float64)
        return Change(weight=lambda w: w * gain + LORA.product(point, feeds))

    def norms(self, sites: Sequence[Site], opset: int) -> ir.Model | None:
        """For A and B' of every linear point the lengths of the columns of W + A·B', `norm.POINT` `[out]`.

        n² = Σ_in W² + Σ_r (2·WᵀA + B'ᵀ·(AᵀA))∘B'ᵀ: no `[in, out]` matrix is formed.

        Raises:
            ConversionError: a weight is not one of real numbers as it lies in the file.
        """
        graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="norms")
        op = GraphBuilder(graph).op
        coded = [s.point.id for s in sites if not s.point.kernel and s.uses[0].weight is None]
        if coded:
            raise ConversionError(f"DoRA needs weights in float32, and {', '.join(coded)} have codes: leave dora out")
        for site in (s for s in sites if not s.point.kernel):
            point, use = site.point, site.uses[0]
            tensor, rows_first = None if use.weight is None else use.weight.const_value, not use.is_transposed
            assert tensor is not None
            squares = np.square(tensor.numpy().astype(np.float64)).sum(0 if rows_first else 1).astype(np.float32)
            a, b = (op.builder.input(x.name, ir.DataType.FLOAT, list(x.shape)) for x in LORA.inputs(point))
            weight = op.builder.initializer(tensor, f"{point.id}.weight")
            wa = op.Gemm(weight, a, transA=int(rows_first))
            columns = op.Transpose(b, perm=[1, 0])
            inner = op.Add(op.Add(wa, wa), op.MatMul(columns, op.Gemm(a, a, transA=1)))
            change = op.ReduceSum(op.Mul(inner, columns), [1], keepdims=0)
            base = op.builder.initializer(ir.tensor(squares, name=f"{point.id}.squares"))
            norm = op.Sqrt(op.Add(base, change))
            norm.name, norm.type, norm.shape = (
                f"norm.{point.id}",
                ir.TensorType(ir.DataType.FLOAT),
                ir.Shape([len(squares)]),
            )
            graph.outputs.append(norm)
        return ir.Model(graph, ir_version=10)


def _without_bias(op: OpBuilder, use: Use, y: ir.Value) -> ir.Value:
    """The frozen product, of which y is the sum with a bias, or itself."""
    node = y.producer()
    assert node is not None
    if node is not use.product:
        return next(x for x in node.inputs if x is not None and not is_frozen(x))
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    return y if bias is None else op.Sub(y, bias)


DORA: AdapterMethod = Dora()
