"""LoRA, and the base's biases as inputs: of its points, and of all other products and normalizations that have one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import BIAS_OP, AdapterInput, InsertionPoint
from edgelora.methods.base import BASE_BIAS
from edgelora_tools.insertion import Site, Use, find_normalizations, find_sites
from edgelora_tools.methods.at_sites import AtSites
from edgelora_tools.methods.base import AdapterMethod, Change, Floats
from edgelora_tools.methods.full import replace_bias
from edgelora_tools.methods.lora import LORA


class LoraBias(AtSites):
    """LoRA and biases; where no point is, a place for a bias alone."""

    graphs = "lora-bias"

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        wanted = {point.id for point in points if point.op != BIAS_OP}
        products = find_sites(model)
        others = [s for s in (*products, *find_normalizations(model)) if s.point.bias and s.point.id not in wanted]
        return [*(s for s in products if s.point.id in wanted), *(Site(_alone(s.point), s.uses) for s in others)]

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        low = () if point.op == BIAS_OP else LORA.inputs(point)
        bias = (AdapterInput(f"{point.id}.{BASE_BIAS}", (point.out_features,), None),) if point.bias else ()
        return (*low, *bias)

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        if len(inputs) != 2:
            replace_bias(use, inputs[-1])
        return y if len(inputs) == 1 else LORA.adapt(op, use, x, y, inputs[:2])

    def merging(self, point: InsertionPoint, feeds: Mapping[str, Floats]) -> Change | None:
        return LORA.merging(point, feeds)

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None


def _alone(point: InsertionPoint) -> InsertionPoint:
    """The place of the bias at a point."""
    return replace(point, op=BIAS_OP, in_features=point.out_features, kernel=(), groups=1)


LORA_BIAS: AdapterMethod = LoraBias()
