"""BitFit: y + c, a bias that is trained (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora.methods.bitfit import BIAS
from edgelora_tools.insertion import Site, Use
from edgelora_tools.methods.at_sites import AtSites
from edgelora_tools.methods.base import AdapterMethod, Change, Floats, per_channel, sites_at, some_linear


class BitFit(AtSites):
    """A change of the bias."""

    graphs = "bitfit"

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        return some_linear("BitFit", sites_at(model, points))

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        return (AdapterInput(f"{point.id}.{BIAS}", per_channel(point.out_features, point), 0.0),)

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        return op.Add(y, inputs[0])

    def merging(self, point: InsertionPoint, feeds: Mapping[str, Floats]) -> Change:
        return Change(bias=lambda c: c + feeds[f"{point.id}.{BIAS}"].reshape(-1))

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None


BITFIT: AdapterMethod = BitFit()
