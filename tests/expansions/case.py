"""An expansion's case: one node, and inputs to try it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Given = tuple[int, ...] | np.ndarray


@dataclass(frozen=True)
class Case:
    """One node, and inputs to compare ONNX Runtime's kernel of it with its expansion.

    `inputs` are shapes, filled with standard normal numbers, or arrays; None is an absent one. `constants` are
    the positions of weights, which the graph holds. `outputs` are the positions of those that are read.
    """

    op: str
    inputs: Sequence[Given | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = "com.microsoft"
    constants: tuple[int, ...] = ()
    outputs: tuple[int, ...] = (0,)
    label: str = ""

    @property
    def id(self) -> str:
        shapes = ("-" if x is None else "x".join(map(str, np.shape(x) if isinstance(x, np.ndarray) else x)) or "0"
                  for x in self.inputs)  # fmt: skip
        text = ";".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}[{','.join(shapes)}]{text}{self.label}"
