"""A gradient case: one node to differentiate, and the inputs to try it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

Sampler = tuple[int, ...] | np.ndarray
Body = Callable[[OpBuilder, Sequence[ir.Value | None]], ir.Graph]


@dataclass(frozen=True)
class Case:
    """One node to differentiate.

    `inputs` are arrays, or shapes that are filled with standard normal numbers (float64); None is an
    absent optional input. `wrt` are the positions to differentiate (default: every input given as a
    shape). `positive` maps an input position to a lower bound (logarithms, roots), `within` to an
    interval. `outputs` is the number of outputs; `cotangents` those that receive one (default: all).
    Quantized operators take and give codes: `codes` and `made` tell the types of those inputs and outputs.
    `computed` are positions of arrays that a rule cannot read: they become known when the graph runs.
    `bodies` make the graphs of an operator with bodies, from the builder outside and all inputs; of these, the
    last `captured` are none of the node's own.
    `not_run` says why ONNX Runtime cannot run the node itself.
    """

    op: str
    inputs: Sequence[Sampler | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    wrt: tuple[int, ...] | None = None
    positive: Mapping[int, float] = field(default_factory=dict)
    within: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    outputs: int = 1
    cotangents: tuple[int, ...] | None = None
    computed: tuple[int, ...] = ()
    label: str = ""
    codes: Mapping[int, type] = field(default_factory=dict)
    made: Mapping[int, type] = field(default_factory=dict)
    bodies: Mapping[str, Body] = field(default_factory=dict)
    captured: int = 0
    not_run: str = ""

    @property
    def id(self) -> str:
        inputs = ",".join(map(_brief, self.inputs))
        text = ";".join(f"{k}={v}" for k, v in self.attributes.items())
        computed = "".join(f",x{i} computed" for i in self.computed)
        return f"{self.op}[{inputs}]{text}{self.label}{computed}"


def _brief(given: Sampler | None) -> str:
    """An input in a few letters: its shape, or its value where it is one number."""
    if given is None:
        return "-"
    if isinstance(given, np.ndarray):
        return str(given) if given.ndim == 0 else _brief(given.shape)
    return "x".join(map(str, given))


def axes(*values: int) -> np.ndarray:
    """Axes, sizes or the like: int64 `[n]`."""
    return np.array(values, dtype=np.int64)


def mask(*shape: int) -> np.ndarray:
    """A mask of truth values."""
    return np.random.default_rng(1).random(shape) < 0.5
