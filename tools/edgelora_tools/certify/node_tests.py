"""ONNX's backend node tests, differentiated: each gradient against float64 central differences at the test's data."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from edgelora.errors import ConversionError
from edgelora_tools.backward import MissingRuleError, differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.certify.double import REAL
from edgelora_tools.certify.selection import Excluded, Feeds, NodeTest, node_tests, observed, prepare
from edgelora_tools.gradients import key_of
from edgelora_tools.normalize import NEWEST_OPSET
from edgelora_tools.reference import evaluator

STEP = 1e-6
DIRECTIONS = 2
TOLERANCE = 1e-5
KINK = 1e-3
"""Forward and backward differences that differ by this much, relatively, stand at a kink."""
NUDGE = 1e-2
_NON_DIFFERENTIABLE = onnx.defs.OpSchema.DifferentiationCategory.NonDifferentiable
_MACHINE = 64 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Outcome:
    """What became of one node test: passed, failed or excluded, with the reason and how it was tried."""

    name: str
    operator: tuple[str, str]
    status: str
    reason: str = ""
    note: str = ""
    expanded: bool = False


@dataclass(frozen=True)
class _Mismatch:
    """A gradient that is not the differences; `kink` and `undefined` say that the data are no place for either."""

    reason: str
    kink: bool = False
    undefined: bool = False


def certify(tests: Iterable[NodeTest], progress: Callable[[str], None] = lambda _: None) -> list[Outcome]:
    """The outcome of every test."""
    outcomes = []
    for position, test in enumerate(tests):
        progress(f"{position}: {test.name}")
        outcomes.append(outcome_of(test))
    return outcomes


def select(operator: str | None = None) -> list[NodeTest]:
    """All node tests, or those of one operator by its name."""
    return [test for test in node_tests() if operator in (None, test.operator[1])]


def outcome_of(test: NodeTest) -> Outcome:
    """Differentiate one node test and compare."""

    def outcome(status: str, reason: str = "", note: str = "") -> Outcome:
        return Outcome(test.name, test.operator, status, reason, note, test.expanded)

    with np.errstate(all="ignore"):
        try:
            model, feeds = prepare(test)
        except Excluded as error:
            return outcome("excluded", str(error))
        except ConversionError as error:
            return outcome("failed", str(error))
        except Exception as error:
            return outcome("failed", f"the reference evaluator does not run: {_brief(error)}")
        reason, note = _tried(model, feeds, test.name)
    return outcome("failed" if reason else "passed", reason, note)


def _tried(model: ir.Model, feeds: Feeds, seed: str) -> tuple[str, str]:
    """The reason of a failure ("" for none) and a note on how the test was tried.

    Integer inputs are unknown until the graph runs; a rule that refuses that is given them as constants. Data
    that stand on a kink, where no derivative exists, are moved by a small random amount; data for which the
    outputs are not finite are made positive and moderate.
    """
    proto, notes = ir.to_proto(model), []
    reason = _refusal(model, feeds)
    if reason:
        bound = _with_constants(ir.from_proto(proto), feeds)
        if _refusal(bound, feeds):
            return reason, ""
        proto, notes = ir.to_proto(_with_constants(ir.from_proto(proto), feeds)), ["its integer inputs are constants"]
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    mismatch = _compare(proto, feeds, rng)
    if mismatch is not None and mismatch.kink:
        notes.append("data moved off a kink")
        mismatch = _compare(proto, _nudged(feeds, rng), rng)
    if mismatch is not None and mismatch.undefined:
        notes = [*notes[: notes.count("its integer inputs are constants")], "outputs not finite: data made positive"]
        mismatch = _compare(proto, _positive(feeds, rng), rng)
    return ("" if mismatch is None else mismatch.reason), "; ".join(notes)


def _refusal(model: ir.Model, feeds: Feeds) -> str:
    """Why the model cannot be differentiated, or "". The model is spent."""
    try:
        _differentiated(model)
    except MissingRuleError as error:
        missing = [m for m in error.missing if not m.reason]
        if missing:
            return "no rule: " + ", ".join(sorted({m.op_type for m in missing}))
        return "refused: " + "; ".join(m.reason for m in error.missing)
    except Exception as error:
        return f"the rule breaks: {_brief(error)}"
    return ""


def _with_constants(model: ir.Model, feeds: Feeds) -> ir.Model:
    """The model with all inputs that are not real numbers as initializers."""
    for value in list(model.graph.inputs):
        if value.dtype not in REAL:
            value.const_value = ir.tensor(feeds[str(value.name)], name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    return model


def _differentiated(model: ir.Model) -> tuple[list[str], list[str]]:
    """Add the backward pass, in place: inputs cotangent.Y, outputs grad.X.

    Returns the names of the outputs that have a cotangent, and of the inputs that have a gradient.
    """
    graph = model.graph
    wrt = [x for x in graph.inputs if x.dtype in REAL]
    real = [y for y in dict.fromkeys(graph.outputs) if y.dtype in REAL]
    seeded = [y for y in real if not _carries_no_gradient(y)] or real
    nodes = list(graph)
    builder = GraphBuilder(graph)
    cotangents = {y: builder.input(f"cotangent.{y.name}", y.dtype, y.shape) for y in seeded}
    grads = differentiate(builder.op, nodes, cotangents, wrt)
    for x in wrt:
        if x in grads:
            builder.add_output(builder.op.Identity(grads[x]), f"grad.{x.name}")
    return [str(y.name) for y in seeded], [str(x.name) for x in wrt if x in grads]


def _compare(proto: onnx.ModelProto, feeds: Feeds, rng: np.random.Generator) -> _Mismatch | None:
    """Gradients against central differences along random directions; None where all agree."""
    try:
        forward = observed(ir.from_proto(proto), feeds)
        names = [str(y.name) for y in forward.graph.outputs]
        backward = ir.from_proto(ir.to_proto(forward))
        seeded, differentiable = _differentiated(backward)
        plain = evaluator(forward)
        base = _values(plain, None, feeds)
        cs = {name: _cotangent(base[names.index(name)], rng) for name in seeded}
        graded = evaluator(backward)
    except Exception as error:
        return _Mismatch(f"the reference evaluator does not run: {_brief(error)}")
    try:
        wanted = [f"grad.{name}" for name in differentiable]
        grads = _values(graded, wanted, feeds | {f"cotangent.{name}": c for name, c in cs.items()})
    except Exception as error:
        return _Mismatch(f"the backward pass does not run: {_brief(error)}")

    def outputs_at(x: str, array: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, _values(plain, None, feeds | {x: array}), strict=True))

    here = dict(zip(names, base, strict=True))
    found = dict(zip(differentiable, grads, strict=True))
    for value in forward.graph.inputs:
        name = str(value.name)
        if value.dtype not in REAL or (name not in found and _needs_no_gradient(value)):
            continue
        x = feeds[name]
        grad = found.get(name, np.zeros_like(x))
        if grad.shape != x.shape or grad.dtype != x.dtype:
            return _Mismatch(f"wrong: gradient {grad.dtype}{grad.shape} for {name} {x.dtype}{x.shape}")
        mismatch = _along_directions(name, x, grad, here, cs, outputs_at, rng)
        if mismatch is not None and name not in found:
            return replace(mismatch, reason=f"no gradient for {name}, on which the output depends")
        if mismatch is not None:
            return mismatch
    return None


def _cotangent(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random cotangent; 0 where the output is not finite, for nothing has a derivative there."""
    return np.where(np.isfinite(y), rng.standard_normal(np.shape(y)), 0.0)


def _values(model: ReferenceEvaluator, names: list[str] | None, feeds: Feeds) -> list[np.ndarray]:
    return [np.asarray(y) for y in model.run(names, dict(feeds))]


def _along_directions(
    name: str,
    x: np.ndarray,
    grad: np.ndarray,
    here: Mapping[str, np.ndarray],
    cs: Mapping[str, np.ndarray],
    outputs_at: Callable[[str, np.ndarray], dict[str, np.ndarray]],
    rng: np.random.Generator,
) -> _Mismatch | None:
    def rise(after: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> float:
        return float(sum(np.sum(c * _difference(after[k], before[k])) for k, c in cs.items()))

    def size() -> float:
        return float(sum(np.sum(np.abs(c * np.where(np.isfinite(here[k]), here[k], 0.0))) for k, c in cs.items()))

    for _ in range(DIRECTIONS):
        v = np.asarray(rng.standard_normal(x.shape))
        try:
            ahead, behind = (outputs_at(name, x + h * v) for h in (STEP, -STEP))
            numeric = rise(ahead, behind) / (2 * STEP)
            sides = (rise(ahead, here) / STEP, rise(here, behind) / STEP)
            halves = [outputs_at(name, x + h * v) for h in (STEP / 2, -STEP / 2)]
            half = rise(halves[0], halves[1]) / STEP
        except Exception as error:
            return _Mismatch(f"the reference evaluator does not run beside the data: {_brief(error)}", kink=True)
        analytic = float(np.sum(grad * v))
        scale = max(abs(numeric), float(np.linalg.norm(grad)), 1e-3)
        error = abs(numeric - analytic)
        if not error <= TOLERANCE * scale + _MACHINE * size() / STEP:
            return _Mismatch(
                f"wrong by {error / scale:.1e} for {name}: {analytic:.6g}, not {numeric:.6g}",
                kink=not (_close(*sides) and _close(numeric, half)),
                undefined=not all(np.isfinite(y[k]).all() for y in (here, ahead, behind) for k in cs),
            )
    return None


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= KINK * max(abs(a), abs(b), 1e-3)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a − b, and 0 where both are the same infinity or both undefined."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, a - b)


def _needs_no_gradient(value: ir.Value) -> bool:
    """Whether ONNX declares every place where the input is used as not differentiable."""
    places = [_category(use.node, use.idx, "inputs") for use in value.uses()]
    return bool(places) and all(place == _NON_DIFFERENTIABLE for place in places)


def _carries_no_gradient(value: ir.Value) -> bool:
    """Whether ONNX declares the output as not differentiable, as it does running statistics."""
    node = value.producer()
    return node is not None and _category(node, list(node.outputs).index(value), "outputs") == _NON_DIFFERENTIABLE


def _category(node: ir.Node, position: int, side: str) -> onnx.defs.OpSchema.DifferentiationCategory:
    domain, op_type = key_of(node)
    try:
        parameters: Sequence = getattr(onnx.defs.get_schema(op_type, node.version or NEWEST_OPSET, domain), side)
    except onnx.defs.SchemaError:
        return onnx.defs.OpSchema.DifferentiationCategory.Unknown
    return parameters[min(position, len(parameters) - 1)].differentiation_category


def _nudged(feeds: Feeds, rng: np.random.Generator) -> Feeds:
    """The real inputs moved by up to one percent of their size (at least of 1)."""
    moved = dict(feeds)
    for name, x in feeds.items():
        if x.dtype == np.float64:
            moved[name] = x + NUDGE * np.maximum(1.0, np.abs(x)) * rng.uniform(-1, 1, x.shape)
    return moved


def _positive(feeds: Feeds, rng: np.random.Generator) -> Feeds:
    """The real inputs as positive numbers between 0.1 and 10.1, apart from each other."""
    moved = dict(feeds)
    for name, x in feeds.items():
        if x.dtype == np.float64:
            moderate = np.clip(np.abs(np.nan_to_num(x, nan=1.0)), 0, 10) + 0.1
            moved[name] = moderate + NUDGE * rng.uniform(0, 1, x.shape)
    return moved


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [repr(error)]
    return f"{type(error).__name__}: {lines[0][:160]}"
