"""The one list of gradient cases: every registered rule has at least one, and tests and benchmarks read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Sampler = tuple[int, ...] | np.ndarray


@dataclass(frozen=True)
class Case:
    """One node to differentiate.

    `inputs` are arrays, or shapes that are filled with standard normal numbers (float64); None is an
    absent optional input. `wrt` are the positions to differentiate (default: every input given as a
    shape). `positive` maps an input position to a lower bound (logarithms, roots). `outputs` is the
    number of outputs; `cotangents` those that receive one (default: all).
    """

    op: str
    inputs: Sequence[Sampler | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    wrt: tuple[int, ...] | None = None
    positive: Mapping[int, float] = field(default_factory=dict)
    outputs: int = 1
    cotangents: tuple[int, ...] | None = None
    label: str = ""

    @property
    def id(self) -> str:
        shapes = ",".join(
            "-" if x is None else "x".join(map(str, np.shape(x) if isinstance(x, np.ndarray) else x))
            for x in self.inputs
        )
        text = ";".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}[{shapes}]{text}{self.label}"


LINEAR = [
    Case("MatMul", [(2, 3, 4), (4, 5)]),
    Case("MatMul", [(3, 4), (4, 5)]),
    Case("MatMul", [(2, 1, 3, 4), (5, 4, 6)]),
    Case("MatMul", [(4,), (4,)]),
    Case("MatMul", [(4,), (2, 4, 3)]),
    Case("MatMul", [(2, 3, 4), (4,)]),
    *(
        Case(
            "Gemm",
            [(4, 3) if ta else (3, 4), (5, 4) if tb else (4, 5), (5,)],
            {"transA": ta, "transB": tb, "alpha": 0.5, "beta": 2.0},
        )
        for ta in (0, 1)
        for tb in (0, 1)
    ),
    Case("Gemm", [(3, 4), (4, 5)]),
    Case("Gemm", [(3, 4), (4, 5), (3, 1)]),
]

ELEMENTWISE = [
    *(
        Case(op, [a, b])
        for op in ("Add", "Mul")
        for a, b in [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 4), (3, 1)), ((), (2, 3))]
    ),
]

ACTIVATIONS = [
    Case("Tanh", [(2, 3)]),
    *(Case("Softmax", [(2, 3, 4)], {"axis": axis}) for axis in (0, 1, -1)),
]

CASES: list[Case] = [*LINEAR, *ELEMENTWISE, *ACTIVATIONS]
