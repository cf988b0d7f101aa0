"""Layer-norm tuning: a normalization whose scale and bias are inputs (Zhao et al. 2023, arXiv:2312.11420)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora.methods.base import BASE_BIAS, BASE_WEIGHT
from edgelora_tools.insertion import Site, Use, find_normalizations
from edgelora_tools.methods.at_sites import AtSites
from edgelora_tools.methods.base import AdapterMethod, Change, Floats


class LayerNormTuning(AtSites):
    """The scale and the bias of every normalization of the last axis, layer or RMS."""

    graphs = "layer-norm"

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        found = find_normalizations(model)
        if not found:
            raise ConversionError(
                "the model has no layer or RMS normalization with a scale of its own: leave layer-norm out of methods"
            )
        return found

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        names = (BASE_WEIGHT, BASE_BIAS) if point.bias else (BASE_WEIGHT,)
        return tuple(AdapterInput(f"{point.id}.{name}", (point.out_features,), None) for name in names)

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        for position, value in enumerate(inputs, 1):
            use.product.replace_input_with(position, value)
        return y

    def merging(self, point: InsertionPoint, feeds: Mapping[str, Floats]) -> Change:
        """Nothing beside the values themselves."""
        return Change()

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None


LAYER_NORM: AdapterMethod = LayerNormTuning()
