"""Bottleneck adapters: y + GELU(y·D' + c')·U' + b' (Houlsby et al. 2019, arXiv:1902.00751).

ReLU is a matter of what is fed (edgelora/methods/bottleneck.py). At a convolution there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora.methods.bottleneck import DOWN, DOWN_BIAS, UP, UP_BIAS
from edgelora_tools.gradients.shapes import annotate
from edgelora_tools.insertion import Site, Use
from edgelora_tools.methods.at_sites import AtSites
from edgelora_tools.methods.base import AdapterMethod, sites_at, some_linear


class Bottleneck(AtSites):
    """A small network of two layers after a module."""

    graphs = "bottleneck"
    merging = None

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        return some_linear("a bottleneck", sites_at(model, points))

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        if point.kernel:
            return ()
        r, out = f"{point.id}.r", point.out_features
        shapes = {DOWN: (out, r), DOWN_BIAS: (r,), UP: (r, out), UP_BIAS: (out,)}
        return tuple(AdapterInput(f"{point.id}.{suffix}", shape, 0.0) for suffix, shape in shapes.items())

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        if not inputs:
            return y
        down, down_bias, up, up_bias = inputs
        h = op.Add(op.MatMul(y, down), down_bias)
        change = op.Add(op.MatMul(op.Gelu(h), up), up_bias)
        return op.Add(y, annotate(change, y))

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None


BOTTLENECK: AdapterMethod = Bottleneck()
