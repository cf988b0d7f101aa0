"""Methods that do the same at every site: what a product there returns becomes what they make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.insertion import Site, Use
from edgelora_tools.methods.base import Placed


class AtSites(Protocol):
    """A method that says what it does at one use of one site."""

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        """The graph inputs that hold the adapter at `point`."""
        ...

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        """Emit what takes the place of y, the frozen product's (biased) output, where its input is x.

        May also give `use.reader` another input 0.
        """
        ...

    def before(self, cached: ir.Model, places: Sequence[InsertionPoint]) -> None:
        """Such adapters stand in the graph with a cache; see `AdapterMethod`."""
        del cached, places

    def place(self, op: OpBuilder, sites: Sequence[Site], dropout: bool) -> Placed:
        """Put the adapter at every site; see `AdapterMethod`."""
        return Placed(tuple(x for site in sites for x in self._insert(op, site, dropout)))

    def _insert(self, op: OpBuilder, site: Site, dropout: bool) -> list[ir.Value]:
        """y = base(x) becomes what the method makes of it (LoRA: y + delta(x ∘ mask)), and its readers read that."""
        inputs = [op.builder.input(s.name, ir.DataType.FLOAT, list(s.shape)) for s in self.inputs(site.point)]
        for call, use in enumerate(site.uses):
            y = use.output
            x = use.reader.inputs[0]  # as it is now: an earlier site may have put its delta there
            assert x is not None
            readers, is_output = list(y.uses()), y in op.builder.graph.outputs
            seen = x
            if dropout:
                name = f"{site.point.id}.mask" if call == 0 else f"{site.point.id}.mask.{call}"
                mask = op.builder.input(name, ir.DataType.UINT8, list(dims(x)))
                seen = op.Mul(x, op.Cast(mask, to=ir.DataType.FLOAT))
                seen.shape, seen.type = x.shape, x.type
            adapted = self.adapt(op, use, seen, y, inputs)
            adapted.shape, adapted.type = y.shape, y.type
            for node, position in readers:
                node.replace_input_with(position, adapted)
            if is_output:
                outputs = op.builder.graph.outputs
                name, y.name = y.name, f"{y.name}.base"
                adapted.name = name
                outputs[:] = [adapted if v is y else v for v in outputs]
        return inputs
