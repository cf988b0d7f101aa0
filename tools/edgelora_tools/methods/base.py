"""What an adapter method is to the compiler: where it stands, its graph inputs, and how it is put into a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import AdapterInput, InsertionPoint
from edgelora_tools.insertion import Site, find_sites
from edgelora_tools.virtual_tokens import VirtualTokens

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


@dataclass(frozen=True)
class Placed:
    """The graph inputs of an adapter in a graph, and the tokens that it puts before the caller's, if it does."""

    inputs: tuple[ir.Value, ...]
    virtual: VirtualTokens | None = None


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

    def place(self, op: OpBuilder, sites: Sequence[Site], dropout: bool) -> Placed:
        """Put an adapter into the graph at these sites of it, with `dropout` behind masks that are further inputs."""
        ...

    @property
    def merging(self) -> Merging | None:
        """What the adapter makes of a point's product; None where the method is no change of weights."""
        ...

    def norms(self, sites: Sequence[Site], opset: int) -> ir.Model | None:
        """The graph that tells the lengths of the columns of W + A·B'; None where the method needs none."""
        ...

    def before(self, cached: ir.Model, places: Sequence[InsertionPoint]) -> ir.Model | None:
        """The graph from the inputs of an adapter at `places` to what stands before every text in the cache.

        It returns `present.I.key` and `.value` `[1, kv_heads, tokens, head_size]` of every layer of `cached`, a graph
        with a cache, which then goes on without an adapter. None where the adapter stands in that graph itself.
        """
        ...


def some_linear(what: str, sites: Sequence[Site]) -> list[Site]:
    """The sites, for a method (`what`) that has no adapters at convolutions.

    Raises:
        ConversionError: all are convolutions.
    """
    if all(site.point.kernel for site in sites):
        raise ConversionError(
            f"{what} is for linear products, and all points are convolutions: leave it out of methods"
        )
    return list(sites)


def sites_at(model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
    """The products at `points`."""
    wanted = {point.id for point in points}
    return [site for site in find_sites(model) if site.point.id in wanted]


def per_channel(size: int, point: InsertionPoint) -> tuple[int, ...]:
    """The shape of a vector over channels that broadcasts over what stands behind them in a convolution."""
    return (size, *(1 for _ in point.kernel))
