"""Full fine-tuning of chosen linear modules: a product whose weight and bias are inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora.methods.base import BASE_BIAS, BASE_WEIGHT
from edgelora_tools.insertion import Site, Use
from edgelora_tools.methods.at_sites import AtSites
from edgelora_tools.methods.base import AdapterMethod, Change, Floats, sites_at, some_linear


class Full(AtSites):
    """The weight and the bias of every linear point; convolutions are left out."""

    graphs = "full"

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        found = some_linear("full fine-tuning", sites_at(model, points))
        linear = [site for site in found if not site.point.kernel]
        coded = [site.point.id for site in linear if any(use.weight is None for use in site.uses)]
        if coded:
            raise ConversionError(
                f"full fine-tuning needs weights in float32, and {', '.join(coded)} have codes: leave full out"
            )
        return linear

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        weight = AdapterInput(f"{point.id}.{BASE_WEIGHT}", (point.in_features, point.out_features), None)
        bias = AdapterInput(f"{point.id}.{BASE_BIAS}", (point.out_features,), None)
        return (weight, bias) if point.bias else (weight,)

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        weight, *bias = inputs
        for value in bias:
            replace_bias(use, value)
        if use.is_transposed:
            use.product.attributes["transB"] = ir.AttrInt64("transB", 0)
        use.product.replace_input_with(1, weight)
        return y

    def merging(self, point: InsertionPoint, feeds: Mapping[str, Floats]) -> Change:
        """Nothing beside the values themselves."""
        return Change()

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None


def replace_bias(use: Use, value: ir.Value) -> None:
    """Let the base add another bias than its own."""
    node, own = use.output.producer(), use.bias
    assert node is not None and own is not None
    node.replace_input_with(list(node.inputs).index(own), value)


FULL: AdapterMethod = Full()
