"""Expansions of ONNX Runtime's operators. Importing the package fills the registry, family by family."""

from edgelora_tools.expansions import (
    activations,
    attention,
    embedding,
    movement,
    normalizations,
    products,
    quantized,
    rotary,
)
from edgelora_tools.expansions.registry import EXPANSIONS, Expansion, NotCovered, expansion, uncovered

__all__ = [
    "EXPANSIONS",
    "Expansion",
    "NotCovered",
    "activations",
    "attention",
    "embedding",
    "expansion",
    "movement",
    "normalizations",
    "products",
    "quantized",
    "rotary",
    "uncovered",
]
