"""Mutants of gradient rules: each operator that a rule emits is made wrong in turn, and the cases must notice.

A site is a place in a rule, or in a helper on the rule's behalf, that emits an operator: the chain of calls from
the rule to it, by file, line and column. A mutation is applied at one site at a time, wherever it is passed.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

import edgelora_tools.gradients
from edgelora_tools.gradients.shapes import rank
from tests.gradients.case import Case
from tests.gradients.cases import CASES
from tests.gradients.checker import Trial, compare, trial_of

_RULES = str(Path(edgelora_tools.gradients.__file__).parent)
_REAL = {ir.DataType.FLOAT, ir.DataType.DOUBLE}

Place = tuple[str, int, int]
Site = tuple[Place, ...]
Emit = Callable[..., Any]
Mutate = Callable[[OpBuilder, Emit, str, tuple, dict], Any]


@dataclass(frozen=True)
class Mutant:
    """One mutation at one site of the rule of one operator."""

    operator: tuple[str, str]
    site: Site
    emitted: str
    mutation: str

    @property
    def source(self) -> str:
        """The line of code that emits the operator."""
        file, line, _ = self.site[-1]
        return linecache.getline(str(Path(_RULES) / file), line).strip()

    @property
    def equivalent(self) -> bool:
        """Whether the mutation changes no gradient, by `EQUIVALENT`."""
        return any(
            op in (None, self.operator[1]) and mutation in (None, self.mutation) and code in self.source
            for op, mutation, code, _ in EQUIVALENT
        )

    def __str__(self) -> str:
        path = " > ".join(f"{file}:{line}:{column}" for file, line, column in self.site)
        return f"{self.operator[1]}: {self.mutation} of {self.emitted} at {path}: {self.source}"


EQUIVALENT: tuple[tuple[str | None, str | None, str, str], ...] = (
    (None, "sign flipped", "zeros = op.Reshape(zeros_like(", "zeros have no sign"),
    ("Softsign", "sign flipped", "d = op.Add(op.Abs(x), 1.0)", "d is squared"),
    *(
        (op, "sign flipped", "return op.Cast(condition, to=like.dtype)", "a mask over its own sum, or a guard at zero")
        for op in (
            "Max",
            "Min",
            "ReduceMax",
            "ReduceMin",
            "ReduceL2",
            "GlobalMaxPool",
            "GlobalLpPool",
            "ScatterElements",
            "ScatterND",
        )
    ),
    ("CumProd", "sign flipped", "return op.Cast(condition", "−1 for the first zero: a sign twice"),
    (None, "Sub instead", "safe = op.Add(y, indicator(op, op.Equal(y, 0.0), y))", "a guard: Y is not 0"),
    ("CumProd", "sign flipped", "first = op.Mul(zero,", "−1 for the first zero: a sign twice"),
    ("Det", "Sub instead", "parity = op.Mod(op.Add(", "modulo 2"),
    ("MeanVarianceNormalization", "Sub instead", "sigma = op.Add(sigma, indicator(", "a guard: σ is not 0"),
    *(
        (op, mutation, "axes_at_run, keepdims=1", "what bodies broadcast is proven by their operators' own cases")
        for op in ("If", "Loop", "Scan")
        for mutation in ("axes shifted", "mean instead")
    ),
    ("Elu", "first factor only", "op.Mul(m, gamma)", "γ = 1"),
)
"""(operator or any, mutation or any, code at the site, why no gradient changes)."""


def _negated(op: OpBuilder, emit: Emit, name: str, inputs: tuple, attributes: dict) -> Any:
    made = emit(name, inputs, attributes)
    return [emit("Neg", (y,), {}) for y in made] if isinstance(made, Sequence) else emit("Neg", (made,), {})


def _kept(position: int) -> Mutate:
    """The operand at `position`, broadcast to the shape of the result."""

    def mutate(op: OpBuilder, emit: Emit, name: str, inputs: tuple, attributes: dict) -> Any:
        made = emit(name, inputs, attributes)
        operand = inputs[position]
        if not isinstance(operand, ir.Value):
            operand = emit("CastLike", (op.builder.op.Constant(value_float=float(operand)), made), {})
        kept = emit("Expand", (operand, emit("Shape", (made,), {})), {})
        kept.shape, kept.type = made.shape, made.type
        return kept

    return mutate


def _renamed(to: str) -> Mutate:
    def mutate(op: OpBuilder, emit: Emit, name: str, inputs: tuple, attributes: dict) -> Any:
        return emit(to, inputs, attributes)

    return mutate


def _untransposed(op: OpBuilder, emit: Emit, name: str, inputs: tuple, attributes: dict) -> Any:
    return emit("Identity", inputs[:1], {})


def _turned(flag: str) -> Mutate:
    def mutate(op: OpBuilder, emit: Emit, name: str, inputs: tuple, attributes: dict) -> Any:
        return emit(name, inputs, {**attributes, flag: 1 - attributes.get(flag, 0)})

    return mutate


def _shifted_axes(op: OpBuilder, emit: Emit, name: str, inputs: tuple, attributes: dict) -> Any:
    x, axes, *rest = inputs
    count = rank(x)
    if isinstance(axes, ir.Value):
        shifted = emit("Mod", (emit("Add", (axes, [1]), {}), [count]), {})
    else:
        shifted = [(axis + 1) % count for axis in axes]
    return emit(name, (x, shifted, *rest), attributes)


def _swapped(op: OpBuilder, emit: Emit, name: str, inputs: tuple, attributes: dict) -> Any:
    condition, a, b = inputs
    return emit(name, (condition, b, a), attributes)


def _opposite(op: OpBuilder, emit: Emit, name: str, inputs: tuple, attributes: dict) -> Any:
    return emit("Not", (emit(name, inputs, attributes),), {})


_BY_OPERATOR: dict[str, dict[str, Mutate]] = {
    "Mul": {"first factor only": _kept(0), "second factor only": _kept(1)},
    "Div": {"divisor dropped": _kept(0)},
    "Add": {"Sub instead": _renamed("Sub")},
    "Sub": {"Add instead": _renamed("Add")},
    "Transpose": {"transpose removed": _untransposed},
    "Gemm": {"transA turned": _turned("transA"), "transB turned": _turned("transB")},
    "ReduceSum": {"mean instead": _renamed("ReduceMean")},
    "ReduceMean": {"sum instead": _renamed("ReduceSum")},
    "Where": {"branches swapped": _swapped},
    "Max": {"Min instead": _renamed("Min")},
    "Min": {"Max instead": _renamed("Max")},
    "Sin": {"Cos instead": _renamed("Cos")},
    "Cos": {"Sin instead": _renamed("Sin")},
    **{
        name: {"opposite": _opposite}
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not")
    },
}
_AXES = {"ReduceSum": {"axes shifted": _shifted_axes}, "ReduceMean": {"axes shifted": _shifted_axes}}
_SIGN = {"sign flipped": _negated}
_VOID = {"ConstantOfShape", "Constant", "Identity", "EyeLike"}
"""Operators whose result is most often zero, or only passed on: the sign is not theirs."""


def _mutations(name: str, inputs: tuple, made: Any) -> dict[str, Mutate]:
    """What can be done to an operator with these inputs and this result."""
    first = made[0] if isinstance(made, Sequence) else made
    found = dict(_BY_OPERATOR.get(name, {}))
    if first.dtype in _REAL and name not in _VOID:
        found |= _SIGN
    if name in _AXES and len(inputs) > 1 and inputs[1] is not None and not _covers(inputs[1], inputs[0]):
        found |= _AXES[name]
    return found


def _covers(axes: ir.Value | Sequence[int], x: ir.Value) -> bool:
    """Whether the axes are known to be all those of x, so that shifting changes nothing; or nothing is known."""
    if x.shape is None:
        return True
    count = rank(x)
    return count <= 1 or (not isinstance(axes, ir.Value) and len(axes) == count)


def _site(frame: FrameType | None) -> Site:
    """The chain of calls inside the rules' package that leads to `frame`, outermost first."""
    places: list[Place] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_RULES):
            line, _, column, _ = _positions(code)[frame.f_lasti // 2]
            places.append((Path(code.co_filename).name, line or 0, column or 0))
        frame = frame.f_back
    return tuple(reversed(places))


@cache
def _positions(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())


@contextmanager
def _emitting(watch: Callable[[Emit, OpBuilder, Site, str, tuple, dict], Any]) -> Iterator[None]:
    """Let `watch` decide what rules emit in place of each operator."""
    plain = OpBuilder._call_op
    inside = False

    def call(self: OpBuilder, name: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        nonlocal inside
        site = () if inside else _site(sys._getframe(1))
        if not site:
            return plain(self, name, inputs, attributes)

        def emit(name: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
            return plain(self, name, inputs, dict(attributes))

        inside = True
        try:
            return watch(emit, self, site, name, tuple(inputs), attributes)
        finally:
            inside = False

    with patch.object(OpBuilder, "_call_op", call):
        yield


def sites_of(trial: Trial, symbolic: bool) -> dict[tuple[Site, str], dict[str, Mutate]]:
    """What can be made wrong in the rule, as far as this case takes it: (site, operator) -> mutations."""
    found: dict[tuple[Site, str], dict[str, Mutate]] = {}
    made: dict[tuple[Site, str], list[ir.Value]] = {}

    def watch(emit: Emit, op: OpBuilder, site: Site, name: str, inputs: tuple, attributes: dict) -> Any:
        result = emit(name, inputs, attributes)
        found.setdefault((site, name), {}).update(_mutations(name, inputs, result))
        made.setdefault((site, name), []).extend([result] if isinstance(result, ir.Value) else result)
        return result

    with _emitting(watch):
        compare(trial, symbolic)
    return {key: mutations for key, mutations in found.items() if any(map(_is_read, made[key]))}


def _is_read(value: ir.Value) -> bool:
    """Whether an output of the model, or of a body in it, depends on the value."""
    seen, ahead = set(), [value]
    while ahead:
        here = ahead.pop()
        if here.is_graph_output():
            return True
        if here not in seen:
            seen.add(here)
            ahead.extend(y for use in here.uses() for y in use.node.outputs)
    return False


def is_killed(trial: Trial, symbolic: bool, site: Site, mutate: Mutate) -> bool:
    """Whether the case fails, in whatever way, when the rule does this at the site."""

    def watch(emit: Emit, op: OpBuilder, here: Site, name: str, inputs: tuple, attributes: dict) -> Any:
        return mutate(op, emit, name, inputs, attributes) if here == site else emit(name, inputs, attributes)

    with _emitting(watch), np.errstate(all="ignore"):
        try:
            compare(trial, symbolic)
        except Exception:
            return True
    return False


@cache
def cases_of(operator: tuple[str, str]) -> tuple[Case, ...]:
    """The cases of one operator."""
    return tuple(case for case in CASES if (case.domain, case.op) == operator)


def survivors(operator: tuple[str, str], sample: tuple[int, int] | None = None) -> tuple[list[Mutant], int]:
    """The mutants of an operator's rule that no case notices and that are not equivalent, and how many were tried.

    With a `sample` (cases, mutants), at most so many cases are looked through for mutants, and at most so many of
    these tried, evenly spaced; what the sampled cases do not notice is put to all the others.
    """
    cases = cases_of(operator)
    first = _spread(cases, sample[0]) if sample else cases
    others = [case for case in cases if not any(case is looked_through for looked_through in first)]
    trials = [(trial_of(case), symbolic) for case in first for symbolic in (False, True)]
    passed: dict[Mutant, list[tuple[Trial, bool, Mutate]]] = {}
    for trial, symbolic in trials:
        for (site, emitted), mutations in sites_of(trial, symbolic).items():
            for name, mutate in mutations.items():
                passed.setdefault(Mutant(operator, site, emitted, name), []).append((trial, symbolic, mutate))
    proper = sorted(
        (mutant for mutant in passed if not mutant.equivalent), key=lambda m: (m.site, m.emitted, m.mutation)
    )
    chosen = _spread(proper, sample[1]) if sample else proper
    left = []
    for mutant in chosen:
        mutate = passed[mutant][0][2]
        rest = ((trial_of(case), symbolic) for case in others for symbolic in (False, True))
        if not any(
            is_killed(trial, symbolic, mutant.site, mutate)
            for trial, symbolic in chain(((t, s) for t, s, _ in passed[mutant]), rest)
        ):
            left.append(mutant)
    return left, len(chosen)


def _spread(items: Sequence[Any], limit: int) -> Sequence[Any]:
    """At most `limit` of the items, evenly spaced."""
    return items[:: -(-len(items) // limit)] if len(items) > limit else items
