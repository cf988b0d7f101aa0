"""IA³: x∘l before the product, or y∘l after it, bias and all (Liu et al. 2022, arXiv:2205.05638).

Which of both a module has is the adapter's choice, so the graph takes both, and ones where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora.methods.ia3 import INTO, OUT
from edgelora_tools.gradients.shapes import annotate
from edgelora_tools.insertion import Site, Use
from edgelora_tools.methods.at_sites import AtSites
from edgelora_tools.methods.base import AdapterMethod, Change, Doubles, Floats, per_channel, sites_at


class Ia3(AtSites):
    """Rescaled activations."""

    graphs = "ia3"

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        return sites_at(model, points)

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        return (
            AdapterInput(f"{point.id}.{INTO}", per_channel(point.in_features, point), 1.0),
            AdapterInput(f"{point.id}.{OUT}", per_channel(point.out_features, point), 1.0),
        )

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        into, out = inputs
        use.reader.replace_input_with(0, annotate(op.Mul(x, into), x))
        return op.Mul(y, out)

    def merging(self, point: InsertionPoint, feeds: Mapping[str, Floats]) -> Change:
        into, out = (feeds[f"{point.id}.{side}"].reshape(-1).astype(np.float64) for side in (INTO, OUT))

        def weight(w: Doubles) -> Doubles:
            if not point.kernel:
                return into[:, None] * w * out
            of_groups = into.reshape(point.groups, -1).repeat(point.out_features // point.groups, axis=0)
            ones = [1] * len(point.kernel)
            return w * of_groups.reshape(*of_groups.shape, *ones) * out.reshape(-1, 1, *ones)

        return Change(weight, lambda c: c * out)

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None


IA3: AdapterMethod = Ia3()
