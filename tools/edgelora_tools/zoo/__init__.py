"""The zoo: whole architectures with small random weights, each a factory as `module:factory` sources are.

A public function of a module here is an architecture; its name is the architecture's, its module the family.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass

FAMILIES = (
    "text",
    "decoders",
    "encoder_decoders",
    "vision",
    "detection_segmentation",
    "audio",
    "multimodal",
    "convnets",
    "networks",
    "further",
)


@dataclass(frozen=True)
class Architecture:
    """An architecture by name, and the SOURCE that makes it."""

    name: str
    family: str

    @property
    def source(self) -> str:
        """`module:factory`."""
        return f"{__name__}.{self.family}:{self.name}"


def architectures() -> list[Architecture]:
    """All of the zoo, family by family, in the order of the files."""
    found = []
    for family in FAMILIES:
        module = importlib.import_module(f"{__name__}.{family}")
        own = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
        own.sort(key=lambda f: f.__code__.co_firstlineno)
        found += [Architecture(f.__name__, family) for f in own if not f.__name__.startswith("_")]
    return found
