"""What codes of 4 bits do to the gradients, product by product: a few runs of the float32 twin."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgelora_tools.ladders import Ladder
from edgelora_tools.passes.quantize import Product, products
from edgelora_tools.runner import Feeds, gradients_of

TRIED = 48
"""Groups of products that are rounded by themselves at most."""


def damages(
    twin: ir.Model,
    base: ir.Model,
    found: Mapping[str, Ladder],
    turned: Callable[[Feeds], float],
    feeds: Feeds,
) -> dict[str, float]:
    """For each weight, how far the gradients turn if it alone is what its first rung makes of it.

    The twin takes the weights as inputs for that, and no graph is built for each. Beyond a number of weights
    neighbours of a kind are tried together, and share what they turn by the squares of their errors.
    """
    graph, by_tensor = twin.clone(), {id(p.weight.const_value): p for p in products(base)}
    given: dict[str, tuple[str, Product]] = {}
    for name, value in list(graph.graph.initializers.items()):
        product = by_tensor.get(id(value.const_value))
        if product is not None and str(product.weight.name) in found:
            del graph.graph.initializers[name]
            value.const_value = None
            graph.graph.inputs.append(value)
            given[str(product.weight.name)] = (name, product)
    real = {name: _as_stored(product, product.matrix) for name, product in given.values()}
    turns: dict[str, float] = {}
    with gradients_of(graph) as gradients:
        for together in groups(given):
            rough: Feeds = {}
            for weight in together:
                name, product = given[weight]
                blocks = found[weight][0].choice.blocks
                assert blocks is not None
                rough[name] = _as_stored(product, blocks.real(len(product.matrix)))
            damage = turned(gradients({**feeds, **real, **rough}))
            squares = {weight: found[weight][0].error ** 2 for weight in together}
            total = sum(squares.values()) or 1.0
            turns |= {weight: damage * square / total for weight, square in squares.items()}
    return turns


def groups(weights: Collection[str]) -> list[list[str]]:
    """Each weight for itself, or so many groups as may be tried; of one kind are names that differ in numbers alone."""
    kinds: dict[str, list[str]] = {}
    for weight in weights:
        kinds.setdefault(re.sub(r"\d+", "", weight), []).append(weight)
    ordered = [weight for kind in kinds.values() for weight in kind]
    count = min(TRIED, len(ordered))
    return [ordered[len(ordered) * i // count : len(ordered) * (i + 1) // count] for i in range(count)]


def _as_stored(product: Product, w: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(w.T if product.turned else w)
