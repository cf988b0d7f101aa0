"""Certify one source: convert it, hold it against its original, and take one training step.

The bundle is a real one, made by the pipeline and run by the device's runtime. Its outputs are compared
with the source's at sizes other than the export's; the gradients of some adapters with torch autograd, or,
where torch cannot reach a point, with finite differences; and one step along the gradient must lower a loss.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelora.bundle import Bundle
from edgelora.errors import EdgeLoraError
from edgelora.gradient_checks import check_point
from edgelora.manifest import InsertionPoint
from edgelora.parity import parity_errors, parity_samples, parity_tolerance
from edgelora.session import SessionSettings
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.runner import sample_inputs
from edgelora_tools.sources import Source, open_source

if TYPE_CHECKING:
    from edgelora_tools.sources.torch_export import Original

TRAINS, IN_PART, REFUSED, WRONG, CRASHED = "trains", "trains in part", "refused", "wrong", "crashed"
TOLERANCE = 1e-4
_KINK, _FAR = 3.0, 1e9
_PROMISE, _STRIDE = 0.01, 0.01
_EVERYWHERE = ".*"  # all-linear, and convolutions too
_POINTS, _RANK, _HALVINGS, _SHOWN = 6, 2, 6, 3

_NODE = re.compile(r" \(node [^)]*\)")

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Certificate:
    """What was found. Figures that were not reached are None.

    `verdict` is one of TRAINS (every point), IN_PART (some points are lost), REFUSED (with a reason, by
    name), WRONG (a figure beyond its tolerance) or CRASHED. `parity` and `gradient` are relative errors;
    `by_torch` of the `compared` points were held against autograd, the others against differences.
    `loss` is before and after the step.
    """

    source: str
    exporter: str
    verdict: str = CRASHED
    reason: str = ""
    points: int = 0
    trained: int = 0
    lost: tuple[str, ...] = ()
    parity: float | None = None
    gradient: float | None = None
    compared: int = 0
    by_torch: int = 0
    loss: tuple[float, float] | None = None
    seconds: float = 0.0

    @property
    def unexpected(self) -> bool:
        """Whether this should not have happened, rather than be a limit that is known by name."""
        return self.verdict in (WRONG, CRASHED)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)


def certify(spec: str, exporter: str) -> Certificate:
    """The certificate of a source. Raises nothing: what goes wrong is in it."""
    began = time.monotonic()
    found = Certificate(spec, exporter)
    try:
        with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
            found = _certify(found, Path(folder) / "bundle")
    except EdgeLoraError as error:
        found = replace(found, verdict=REFUSED, reason=first_line(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        found = replace(found, verdict=CRASHED, reason=f"{type(error).__name__} at {where}: {first_line(error)}")
    return replace(found, seconds=round(time.monotonic() - began, 1))


def _certify(found: Certificate, path: Path) -> Certificate:
    source = open_source(found.source, found.exporter)
    manifest = convert(source, path, ConvertOptions(task="feature-extraction", target_modules=_EVERYWHERE))
    bundle = Bundle.open(path, SessionSettings(threads=1))
    rng = np.random.default_rng(0)
    samples = parity_samples(bundle)
    reached = {p for g in manifest.training for p in g.points}
    trained = [p for p in manifest.points if p.id in reached]
    lost = tuple(f"{p.id}: {p.blocked_by}" for p in manifest.lost)
    errors = parity_errors(bundle, samples, rng)
    parity = max(errors.values())
    found = replace(found, points=len(manifest.points), trained=len(trained), lost=lost, parity=parity)
    if any(error > parity_tolerance(manifest, output) for output, error in errors.items()):
        return replace(found, verdict=WRONG, reason=f"differs from its source by {parity:.1e} of the largest value")
    if not trained:
        return replace(found, verdict=REFUSED, reason=_why_lost(found))
    inputs = samples[1][0]
    chosen = spread(trained, _POINTS)
    found, problem = _compare(found, source, bundle, chosen, inputs, rng)
    if problem:
        return replace(found, verdict=WRONG, reason=problem)
    found = replace(found, loss=step(bundle, trained, inputs, rng))
    assert found.loss is not None
    if not found.loss[1] < found.loss[0]:
        return replace(found, verdict=WRONG, reason=f"a step along the gradient leaves the loss at {found.loss[0]:.6g}")
    if len(trained) < len(manifest.points):
        return replace(found, verdict=IN_PART, reason=_why_lost(found))
    return replace(found, verdict=TRAINS)


def _why_lost(found: Certificate) -> str:
    """The operators that cut points off, each once."""
    causes = dict.fromkeys(entry.split(": ", 1)[1] for entry in found.lost)
    kinds = dict.fromkeys(_NODE.sub("", cause) for cause in causes)
    return "; ".join(kinds) if kinds else "no output of floats depends on these points"


def spread(points: Sequence[InsertionPoint], count: int) -> list[InsertionPoint]:
    """At most `count` of the points, evenly over the depth, the first and the last among them."""
    chosen = sorted({round(i) for i in np.linspace(0, len(points) - 1, count)})
    return [points[i] for i in chosen]


def random_adapter(points: Sequence[InsertionPoint], rng: np.random.Generator, rank: int = _RANK) -> Feeds:
    """A and B, normal, such that a point's delta is of the size of its input."""
    values: Feeds = {}
    for point in points:
        r = math.lcm(rank, point.groups)
        fan = point.in_features * math.prod(point.kernel)
        values[point.input_a] = (rng.standard_normal(point.shape_a(r)) / fan**0.5).astype(np.float32)
        values[point.input_b] = (rng.standard_normal(point.shape_b(r)) / (r // point.groups) ** 0.5).astype(np.float32)
    return values


def absent(bundle: Bundle) -> Feeds:
    """No adapter at any point."""
    return {
        name: np.zeros(shape, np.float32)
        for p in bundle.manifest.points
        for name, shape in ((p.input_a, p.shape_a(0)), (p.input_b, p.shape_b(0)))
    }


def _compare(
    found: Certificate,
    source: Source,
    bundle: Bundle,
    points: Sequence[InsertionPoint],
    inputs: Feeds,
    rng: np.random.Generator,
) -> tuple[Certificate, str]:
    """The certificate with the gradients' largest error, and what is wrong with them, if anything is.

    Points that torch reaches are compared together, each of the others with finite differences; all of
    them where torch has no derivative of something that the graph has one of.
    """
    errors: dict[str, float] = {}
    problems: list[str] = []
    reached: list[InsertionPoint] = []
    if source.original is not None:
        from edgelora_tools.certify.torch_oracle import NoDerivative, reachable

        given = _all_inputs(source, inputs)
        called = reachable(source.original, points, given)
        reached = [p for p in points if p.id in called]
        if reached:
            try:
                errors, problems = _against_torch(source.original, bundle, reached, given, rng)
            except NoDerivative:
                reached = []
    for point in (p for p in points if p not in reached):
        verdict = check_point(bundle, point, inputs, rng)
        if not verdict.passed:
            problems.append(f"the gradient of {point.id} differs from finite differences by {verdict.error:.1e}")
        if not reached:
            errors[point.id] = verdict.error
    worst = max(errors.values(), default=None)
    found = replace(found, gradient=worst, compared=len(points), by_torch=len(reached))
    return found, "; ".join(problems[:_SHOWN])


def _against_torch(
    original: Original, bundle: Bundle, points: Sequence[InsertionPoint], inputs: Feeds, rng: np.random.Generator
) -> tuple[dict[str, float], list[str]]:
    """The relative errors by tensor, with all of `points` adapted at once, and what is beyond the tolerance.

    What differs from torch's float32 is held against its float64: a kink (of a ReLU, of a maximum) and
    cancellation make float32 jump, ours as torch's, and neither is then the truth. The smaller error counts.
    """
    from edgelora_tools.certify.torch_oracle import differentiate, in_double

    adapter = random_adapter(points, rng)
    feeds = {**inputs, **absent(bundle), **adapter}
    made = bundle.forward.run(feeds)
    cotangents = {n: rng.standard_normal(y.shape).astype(np.float32) for n, y in made.items() if _real(y)}
    for n, c in cotangents.items():
        c[~np.isfinite(made[n])] = 0
    ours = _gradients(bundle, {**feeds, **{f"cotangent.{n}": c for n, c in cotangents.items()}}, adapter)
    torch32 = differentiate(original, points, adapter, inputs, cotangents)
    errors = {n: relative(ours[n], g) for n, g in torch32.gradients.items()}
    errors |= {n: relative(made[n], torch32.outputs[n]) for n in cotangents}
    if max(errors.values()) <= TOLERANCE:
        return errors, []
    try:
        torch64 = differentiate(in_double(original), points, adapter, inputs, cotangents)
    except Exception as error:
        where = max(errors, key=lambda n: errors[n])
        return errors, [f"{where} is {errors[where]:.1e} from torch, whose float64 fails: {first_line(error)}"]
    got = {**ours, **made}
    single, double = ({**t.gradients, **t.outputs} for t in (torch32, torch64))
    exact = {n: relative(got[n], double[n]) for n in errors}
    theirs = {n: relative(single[n], double[n]) for n in errors}
    limit = max(TOLERANCE, _KINK * max(theirs.values()))
    problems = [
        f"{n} is {exact[n]:.1e} from torch's float64, torch's float32 {theirs[n]:.1e}"
        for n in errors
        if min(exact[n], errors[n]) > limit
    ]
    return {n: min(exact[n], errors[n]) for n in errors}, problems


def _gradients(bundle: Bundle, feeds: Feeds, adapter: Feeds) -> Feeds:
    """dL/dx of the adapter's tensors by the cotangent graph; zero where the graph has none."""
    graph = bundle.graph(bundle.training("cotangent", dropout=False).file)
    made = graph.run(feeds, [f"grad.{n}" for n in adapter if f"grad.{n}" in graph.outputs])
    return {n: made.get(f"grad.{n}", np.zeros(x.shape, np.float32)) for n, x in adapter.items()}


def _real(y: np.ndarray) -> bool:
    return bool(np.issubdtype(y.dtype, np.floating))


def _all_inputs(source: Source, inputs: Feeds) -> Feeds:
    """The bundle's inputs and those of the source that no output of the bundle needs."""
    known = {str(d.value): n for v in source.model.graph.inputs if v.name in inputs for d, n in _sizes(v, inputs)}
    absent = [v for v in source.model.graph.inputs if v.name not in inputs]
    if not absent:
        return inputs
    sizes = {str(d.value): 3 for v in absent for d in v.shape or () if not isinstance(d, int)} | known
    drawn = sample_inputs(source.model, sizes, np.random.default_rng(0))
    return {**{str(v.name): drawn[str(v.name)] for v in absent}, **inputs}


def _sizes(value: Any, inputs: Feeds) -> list[tuple[Any, int]]:
    shape = inputs[value.name].shape
    return [(d, n) for d, n in zip(value.shape, shape, strict=True) if not isinstance(d, int)]


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """The norm of the difference relative to that of what is wanted; `_FAR` where shapes or what is infinite differ."""
    if got.shape != wanted.shape:
        return _FAR
    same = ~(np.isfinite(got) | np.isfinite(wanted))
    a, b = (np.where(same, 0, np.asarray(x, np.float64)) for x in (got, wanted))
    gap = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-12)
    return gap if gap < _FAR else _FAR


def step(
    bundle: Bundle, points: Sequence[InsertionPoint], inputs: Feeds, rng: np.random.Generator
) -> tuple[float, float]:
    """The loss before and after one step along the gradient of a fresh adapter (A random, B zero) at every point.

    The loss is the mean square to a random target, over all outputs of floats. The step first promises a
    hundredth of the loss, but is no longer than a hundredth of the adapter, and is halved a few times at most.
    """
    adapter = random_adapter(points, rng)
    for point in points:
        adapter[point.input_b][...] = 0
    feeds = {**inputs, **absent(bundle)}
    first = bundle.forward.run({**feeds, **adapter})
    kept = {n: np.isfinite(y) for n, y in first.items() if _real(y)}
    targets = {n: _target(first[n], m, rng) for n, m in kept.items()}

    def loss(made: Mapping[str, np.ndarray]) -> float:
        return sum(float(np.mean((made[n] - targets[n])[m] ** 2)) for n, m in kept.items() if m.any())

    cotangents = {
        f"cotangent.{n}": (np.where(m, first[n] - targets[n], 0) * (2 / max(m.sum(), 1))).astype(np.float32)
        for n, m in kept.items()
    }
    found = _gradients(bundle, {**feeds, **adapter, **cotangents}, adapter)
    gradients = {n: g.astype(np.float64) for n, g in found.items()}
    before = after = loss(first)
    square = sum(float((g**2).sum()) for g in gradients.values())
    size = sum(float((x.astype(np.float64) ** 2).sum()) for x in adapter.values())
    rate = min(_PROMISE * before / square, _STRIDE * (size / square) ** 0.5) if square else 0.0
    for _ in range(_HALVINGS):
        moved = {n: (adapter[n] - rate * g).astype(np.float32) for n, g in gradients.items()}
        after = loss(bundle.forward.run({**feeds, **adapter, **moved}))
        if after < before:
            break
        rate /= 2
    return before, after


def _target(y: np.ndarray, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal, with the mean and the deviation of what is there."""
    values = y[kept].astype(np.float64) if kept.any() else np.zeros(1)
    return values.mean() + max(float(values.std()), 0.1) * rng.standard_normal(y.shape)


def first_line(error: Exception) -> str:
    """What an exception says, on one line."""
    text = str(error).strip()
    lines = text.splitlines()
    return " ".join(lines[:2])[:400] if lines else type(error).__name__
