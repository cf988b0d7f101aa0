"""What an adapter method is to the compiler: its graph inputs at a point, and what it does to the product there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import OpBuilder

from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora_tools.insertion import Site, Use, find_sites

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """What an adapter makes of a product: of its weight, `[in, out]` or a convolution's kernel, and its bias `[out]`.

    None: it stays. A change that leaves the weight adds to the bias.
    """

    weight: Callable[[Doubles], Doubles] | None = None
    bias: Callable[[Doubles], Doubles] | None = None


# The change at a point, from the adapter's graph inputs by name; None where no weight of the base's shape holds it.
Merging = Callable[[InsertionPoint, Mapping[str, Floats]], Change | None]


class AdapterMethod(Protocol):
    """One member of the adapter family. `graphs` names its set of graphs; a node of its own has its rule here too."""

    graphs: str

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        """Where adapters stand in the model, or a copy of it, of which the bundle adapts `points`, or these places.

        Raises:
            ConversionError: nowhere, or a place cannot have one.
        """
        ...

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        """The graph inputs that hold the adapter at `point`."""
        ...

    def adapt(self, op: OpBuilder, use: Use, x: ir.Value, y: ir.Value, inputs: Sequence[ir.Value]) -> ir.Value:
        """Emit what takes the place of y, the frozen product's (biased) output, where its input is x.

        May also give `use.reader` another input 0.
        """
        ...

    @property
    def merging(self) -> Merging | None:
        """What the adapter makes of a point's product; None where the method is no change of weights."""
        ...

    def norms(self, sites: Sequence[Site], opset: int) -> ir.Model | None:
        """The graph that tells the lengths of the columns of W + A·B'; None where the method needs none."""
        ...


def sites_at(model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
    """The products at `points`."""
    wanted = {point.id for point in points}
    return [site for site in find_sites(model) if site.point.id in wanted]


def per_channel(size: int, point: InsertionPoint) -> tuple[int, ...]:
    """The shape of a vector over channels that broadcasts over what stands behind them in a convolution."""
    return (size, *(1 for _ in point.kernel))
