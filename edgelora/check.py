"""Prove a bundle on this machine: parity with its source, and every gradient of every training graph.

Nothing here knows the gradient rules. The cotangent graph is held against finite differences: f(θ) = Σ <c,
output(θ)> is evaluated by the inference graph, its derivative along a direction by differences. A loss
graph is held against the cotangent graph, fed with the loss's derivative from numpy; a graph with dropout
against the one without, by masks of ones, and against differences of its own loss under random masks. The graph of
mixed batches is held against the inference graph, row by row.

Where activations are rounded to int8, outputs are staircases: there the gradients are held against wide differences at
many places at once, and no tolerance is finer than the steps (docs/bundle-format.md, precision). Of a base that was
quantized at conversion, the float32 gradients are known: these decide (quantization.py), and the differences are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

from edgelora.active import ActiveAdapter
from edgelora.adapter import absent_adapter
from edgelora.bundle import MANIFEST_FILE, Bundle
from edgelora.dimensions import evaluate_dimension
from edgelora.errors import BundleError
from edgelora.files import write_atomic
from edgelora.manifest import LORA_GRAPHS, InsertionPoint, Manifest, Prefix, TrainingGraph
from edgelora.mixing import AdapterStack
from edgelora.quantization import QuantizedVerdict, check_quantization
from edgelora.reference_losses import REFERENCES
from edgelora.session import ENGINE_VERSION, Graph
from edgelora.slopes import (
    GRADIENT_TOLERANCE,
    LARGEST,
    ROUNDED_TOLERANCE,
    Function,
    bounded,
    finite,
    fit_staircase,
    slope_along,
)

PARITY_FILE = "parity.safetensors"
PARITY_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 1e-1, "int4": 2e-1}
SAME_TOLERANCE = 1e-3
MIXED_TOLERANCE = 1e-4
_RANK, _OUTPUTS = 4, 3
_MIXED_RANKS, _MIXED_MEMORY = (0, 4, 2), 1 << 28
_PLACES, _SPOTS, _SPREAD = 12, 8, 0.3
_CHANGE, _LOUDEST, _NEAR = 0.1, 64.0, 0.1
_ALONG = "loss along a direction"

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PointVerdict:
    """A point's gradient: the analytic and the numeric directional derivative, and their relative gap.

    Of the point's tensors, the one with the larger gap. The gap decides whether it `passed`, unless the bundle holds
    the float32 gradients of its base.
    """

    id: str
    analytic: float
    numeric: float
    error: float
    passed: bool


@dataclass(frozen=True)
class GraphVerdict:
    """A training graph, or one of mixed batches: the largest relative error of what it returns, and where."""

    file: str
    error: float
    where: str
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """What `check` found. `parity` is the largest difference to the source, relative to its largest value.

    `points` has a row per insertion point that has a gradient, and one for the head where there is one; `quantized`
    the cosines of a bundle that was quantized at conversion.
    """

    passed: bool
    parity: float
    parity_samples: int
    points: tuple[PointVerdict, ...]
    graphs: tuple[GraphVerdict, ...]
    onnxruntime: str
    quantized: tuple[QuantizedVerdict, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)


def check(
    bundle: Bundle, extra: list[tuple[Feeds, Feeds]] | None = None, progress: Callable[[str], None] = lambda _: None
) -> Verdict:
    """Check a bundle; `extra` are further (inputs, source outputs) to compare with.

    Raises:
        BundleError: the bundle holds no parity samples.
    """
    manifest = bundle.manifest
    samples = [*parity_samples(bundle), *(extra or [])]
    progress("parity with the source")
    rng = np.random.default_rng(0)
    parity = max(parity_error(bundle, inputs, outputs, rng) for inputs, outputs in samples)
    inputs = samples[min(1, len(samples) - 1)][0]
    progress("gradients of the float32 base")
    quantized = check_quantization(bundle)
    decided = {verdict.id: verdict.passed for verdict in quantized}
    points: list[PointVerdict] = []
    for point in manifest.trainable:
        progress(point.id)
        verdict = check_point(bundle, point, inputs, rng)
        points.append(replace(verdict, passed=decided.get(point.id, verdict.passed)))
    if manifest.head is not None:
        points.append(check_head(bundle, inputs, rng))
    graphs: list[GraphVerdict] = []
    for record in manifest.training:
        if record.dropout or record.loss != "cotangent":
            progress(record.file)
            graphs.append(check_graph(bundle, record, inputs, rng))
        if record.recomputed is not None:
            progress(record.recomputed.file)
            graphs.append(check_recomputed(bundle, record, record.recomputed.file, inputs, rng))
    for name, found in manifest.methods.items():
        for record in found.training:
            progress(record.file)
            graphs.append(check_method(bundle, record, name, inputs, rng))
    if manifest.mixed is not None:
        progress(manifest.mixed)
        graphs.append(check_mixed(bundle, manifest.mixed, inputs, rng))
    for prefix in manifest.prefixes:
        progress(prefix.file)
        graphs += check_prefix(bundle, prefix, inputs, rng)
    tolerance = PARITY_TOLERANCE[manifest.source.get("precision", "float32")]
    passed = parity <= tolerance and all(v.passed for v in (*points, *graphs, *quantized))
    return Verdict(passed, parity, len(samples), tuple(points), tuple(graphs), ENGINE_VERSION, quantized)


def store_verdict(bundle: Bundle, verdict: Verdict) -> Manifest:
    """Write the verdict into the bundle's manifest; returns the new manifest."""
    manifest = replace(bundle.manifest, verification=verdict.to_dict())
    write_atomic(bundle.path / MANIFEST_FILE, manifest.to_json().encode())
    return manifest


def parity_samples(bundle: Bundle) -> list[tuple[Feeds, Feeds]]:
    """Inputs and the source's outputs for them, recorded at conversion."""
    path = bundle.path / PARITY_FILE
    try:
        arrays = load_file(path)
    except Exception as error:
        raise BundleError(f"{path}: cannot be read ({error}); convert the model again") from error
    samples: dict[str, tuple[Feeds, Feeds]] = {}
    for key, array in arrays.items():
        number, side, name = key.split("/", 2)
        samples.setdefault(number, ({}, {}))[side == "out"][name] = array
    return [samples[number] for number in sorted(samples)]


def parity_error(bundle: Bundle, inputs: Feeds, source: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> float:
    """The largest difference between the bundle without adapter and the source, relative to the largest value.

    A new head has no counterpart in the source: a random one is applied to the source's pooled output here.
    """
    feeds: Feeds = {**inputs, **absent_adapter(bundle.manifest)}
    head = random_head(bundle.manifest, rng)
    ours = bundle.forward.run({**feeds, **head})
    theirs = expected_outputs(bundle.manifest, inputs, source, head)
    worst = 0.0
    for name, wanted in theirs.items():
        wanted = np.asarray(wanted, np.float64)
        got = np.asarray(ours[name], np.float64)
        if got.shape != wanted.shape:
            return LARGEST
        scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
        worst = max(worst, bounded(float(np.abs(got - wanted).max(initial=0.0)) / scale))
    return worst


def expected_outputs(
    manifest: Manifest, inputs: Feeds, source: Mapping[str, NDArray[Any]], head: Feeds
) -> dict[str, NDArray[Any]]:
    """The task's outputs from the source's, in float64 numpy."""
    if manifest.task == "feature-extraction":
        return {spec.name: source[spec.name] for spec in manifest.outputs}
    (base,) = source.values()
    base = base.astype(np.float64)
    pooling = manifest.source.get("pooling", "mean")
    if manifest.task != "token-classification" and base.ndim == 3:
        if pooling == "cls":
            base = base[:, 0]
        elif "attention_mask" in inputs:
            mask = inputs["attention_mask"].astype(np.float64)[..., None]
            base = (base * mask).sum(1) / np.maximum(mask.sum(1), 1e-9)
        else:
            base = base.mean(1)
    if manifest.head is None:
        return {"embedding": base / np.linalg.norm(base, axis=-1, keepdims=True)}
    weight, bias = (head[name].astype(np.float64) for name in (manifest.head.weight, manifest.head.bias))
    return {"logits": base @ weight.T + bias}


def check_point(bundle: Bundle, point: InsertionPoint, inputs: Feeds, rng: np.random.Generator) -> PointVerdict:
    """One point's A and B moved together, all other points absent."""
    a, b = _random_pair(point, rng)
    base: Feeds = {**inputs, **absent_adapter(bundle.manifest), **random_head(bundle.manifest, rng)}
    b *= _gentle(bundle, base, {point.input_a: a, point.input_b: b})
    return _against_differences(bundle, point.id, base, {point.input_a: a, point.input_b: b}, rng)


def check_head(bundle: Bundle, inputs: Feeds, rng: np.random.Generator) -> PointVerdict:
    """The head's weight and bias, all points absent."""
    head = bundle.manifest.head
    assert head is not None
    base: Feeds = {**inputs, **absent_adapter(bundle.manifest)}
    return _against_differences(bundle, head.name, base, random_head(bundle.manifest, rng), rng)


def _against_differences(
    bundle: Bundle, name: str, base: Feeds, values: Feeds, rng: np.random.Generator, graphs: str = LORA_GRAPHS
) -> PointVerdict:
    """The cotangent graph's gradient of each tensor of `values` against the inference graph's slope; the worst.

    The direction is noise plus twice the gradient's own, so that neither a wrong part of a gradient nor
    a wrong size of it can go unseen.
    """
    graph = bundle.graph(bundle.training("cotangent", dropout=False, graphs=graphs).file)
    forward = bundle.forward_in(graphs)
    if _rounds(bundle):
        found = [_on_average(forward, graph, base, values, tensor, rng) for tensor in values]
        rounded = [PointVerdict(name, a, n, error, error <= ROUNDED_TOLERANCE) for a, n, error in found]
        return max(rounded, key=lambda verdict: verdict.error)
    here: Feeds = forward.run({**base, **values})
    weights: Feeds = {n: rng.standard_normal(y.shape).astype(np.float32) for n, y in here.items()}

    def gradient_at(at: Feeds, tensor: str) -> NDArray[np.float64]:
        return _gradient_at(graph, {**base, **at}, weights, tensor)

    def along(tensor: str) -> PointVerdict:
        gradient = gradient_at(values, tensor)
        direction = _direction(values[tensor], gradient, rng)

        def moved(step: float) -> Feeds:
            return {**values, tensor: values[tensor] + np.float32(step) * direction}

        def value(step: float) -> float:
            there = forward.run({**base, **moved(step)})
            return sum(float(np.sum((there[n] - here[n]) * w.astype(np.float64))) for n, w in weights.items())

        def slope(step: float) -> float:
            return float((gradient_at(moved(step), tensor) * direction).sum())

        analytic, numeric, error = slope_along(value, slope, [gradient * direction])
        return PointVerdict(name, finite(analytic), finite(numeric), error, error <= GRADIENT_TOLERANCE)

    return max((along(tensor) for tensor in values), key=lambda verdict: verdict.error)


def _gradient_at(graph: Graph, feeds: Feeds, weights: Feeds, tensor: str) -> NDArray[np.float64]:
    """d Σ <weight, output>/d tensor by the cotangent graph; zeros where no output depends on it."""
    name, cotangents = f"grad.{tensor}", {f"cotangent.{n}": w for n, w in weights.items()}
    found = graph.run({**feeds, **cotangents}, [name]) if name in graph.outputs else {}
    return np.asarray(found.get(name, np.zeros(feeds[tensor].shape)), np.float64)


def _rounds(bundle: Bundle) -> bool:
    """Whether activations are rounded, so that outputs are staircases."""
    return bundle.manifest.source.get("precision") in ("int8", "int4")


def _on_average(
    forward: Graph, graph: Graph, base: Feeds, values: Feeds, tensor: str, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The gradient of one tensor and the slope of the outputs, at places around `values`; see `fit_staircase`.

    Where noise leaves that open, a gradient and its differences are means over spots around each place.
    """

    def gradient_at(at: Feeds, weights: Feeds) -> NDArray[np.float64]:
        return _gradient_at(graph, {**base, **at}, weights, tensor)

    def place() -> tuple[Feeds, Feeds, NDArray[np.float32]]:
        at = _nearby(values, rng)
        here: Feeds = forward.run({**base, **at})
        weights: Feeds = {n: rng.standard_normal(y.shape).astype(np.float32) for n, y in here.items()}
        return at, weights, _direction(at[tensor], gradient_at(at, weights), rng)

    def spot(at: Feeds, weights: Feeds, direction: NDArray[np.float32]) -> tuple[float, Function]:
        here: Feeds = forward.run({**base, **at})

        def value(step: float) -> float:
            moved = forward.run({**base, **at, tensor: at[tensor] + np.float32(step) * direction})
            return sum(float(np.sum((moved[n] - here[n]) * w.astype(np.float64))) for n, w in weights.items())

        return float((gradient_at(at, weights) * direction).sum()), value

    def around(at: Feeds, weights: Feeds, direction: NDArray[np.float32]) -> tuple[float, Function]:
        spots = [spot(_nearby(at, rng), weights, direction) for _ in range(_SPOTS)]
        return sum(a for a, _ in spots) / _SPOTS, lambda step: sum(value(step) for _, value in spots) / _SPOTS

    places = [place() for _ in range(_PLACES)]
    found = fit_staircase([spot(*one) for one in places])
    return found if found[2] <= ROUNDED_TOLERANCE else fit_staircase([around(*one) for one in places])


def _nearby(values: Feeds, rng: np.random.Generator) -> Feeds:
    return {n: (x + _SPREAD * x.std() * rng.standard_normal(x.shape)).astype(np.float32) for n, x in values.items()}


def check_graph(bundle: Bundle, record: TrainingGraph, inputs: Feeds, rng: np.random.Generator) -> GraphVerdict:
    """A loss graph, or one with dropout, with an adapter at every point."""
    values = whole_adapter(bundle, inputs, rng)
    made = bundle.forward.run({**inputs, **values})
    feeds: Feeds = {**inputs, **values, **loss_feeds(bundle.manifest, record, inputs, made, rng)}
    got, expected = bundle.graph(record.file).run(feeds), _expected(bundle, record, feeds, made)
    same, slope = (ROUNDED_TOLERANCE,) * 2 if _rounds(bundle) else (SAME_TOLERANCE, GRADIENT_TOLERANCE)
    shares: dict[str, float] = {}  # errors as shares of what is tolerated
    for name in sorted(expected):
        shares[name] = _gap(got[name], expected[name]) / same if name in got else LARGEST
    if "loss" in got and (record.dropout or not expected):
        for spec in record.inputs:
            if spec.dtype == "uint8":
                feeds[spec.name] = (rng.random(feeds[spec.name].shape) < 0.7).astype(np.uint8)
        moved = [name for name in values if f"grad.{name}" in got]
        shares[_ALONG] = _slope_error(bundle, record, feeds, moved, rng) / slope
    where = max(shares, key=lambda name: shares[name])
    tolerance = slope if where == _ALONG else same
    return GraphVerdict(record.file, bounded(shares[where] * tolerance), where, shares[where] <= 1)


def check_method(
    bundle: Bundle, record: TrainingGraph, graphs: str, inputs: Feeds, rng: np.random.Generator
) -> GraphVerdict:
    """A training graph of another adapter method than LoRA, by name its set of graphs.

    The loss `cotangent` stands against differences of the set's inference graph, one point at a time, and that graph,
    with no adapter, against LoRA's; every other loss stands against an independent reference, with an adapter at every
    point.
    """
    manifest, forward = bundle.manifest, bundle.forward_in(graphs)
    absent, head = absent_adapter(manifest, graphs), random_head(manifest, rng)
    values: Feeds = {name: x + _NEAR * rng.standard_normal(x.shape) for name, x in absent.items()}
    for point in manifest.points:
        if point.input_a in absent:
            values[point.input_a], b = _random_pair(point, rng)
            values[point.input_b] = _NEAR * b
    values = {name: x.astype(np.float32) for name, x in values.items()}
    if record.loss == "cotangent":
        off, base = forward.run({**inputs, **absent, **head}), {**inputs, **absent_adapter(manifest), **head}
        errors = {name: _gap(off[name], y) / SAME_TOLERANCE for name, y in bundle.forward.run(base).items()}
        for point in manifest.trainable:
            own = {name: x for name, x in values.items() if name.rpartition(".")[0] == point.id}
            verdict = _against_differences(bundle, point.id, {**inputs, **absent, **head}, own, rng, graphs)
            errors[point.id] = verdict.error / (ROUNDED_TOLERANCE if _rounds(bundle) else GRADIENT_TOLERANCE)
        tolerance = GRADIENT_TOLERANCE
    else:
        made = forward.run({**inputs, **values, **head})
        feeds: Feeds = {**inputs, **values, **head, **loss_feeds(manifest, record, inputs, made, rng)}
        got, expected = bundle.graph(record.file).run(feeds), _expected(bundle, record, feeds, made, graphs)
        tolerance = ROUNDED_TOLERANCE if _rounds(bundle) else SAME_TOLERANCE
        errors = {name: _gap(got[name], y) / tolerance if name in got else LARGEST for name, y in expected.items()}
        if not expected:
            moved = [name for name in values if f"grad.{name}" in got]
            errors[_ALONG] = _slope_error(bundle, record, feeds, moved, rng) / GRADIENT_TOLERANCE
    where = max(errors, key=lambda name: errors[name])
    return GraphVerdict(record.file, bounded(errors[where] * tolerance), where, errors[where] <= 1)


def check_mixed(bundle: Bundle, file: str, inputs: Feeds, rng: np.random.Generator) -> GraphVerdict:
    """Rows with adapters of different ranks and heads, one of them absent, against the inference graph with each."""
    manifest, batch = bundle.manifest, bundle.manifest.inputs[0].shape[0]
    rows = np.arange(len(_MIXED_RANKS)) % len(inputs[manifest.inputs[0].name])
    given = {s.name: inputs[s.name][rows] if s.shape[:1] == (batch,) else inputs[s.name] for s in manifest.inputs}
    adapters: dict[Hashable, ActiveAdapter] = {}
    for number, rank in enumerate(_MIXED_RANKS):
        feeds: Feeds = absent_adapter(manifest) | random_head(manifest, rng, _OUTPUTS + number)
        for point in manifest.points if rank else ():
            feeds[point.input_a], feeds[point.input_b] = _random_pair(point, rng, rank)
            feeds[point.input_b] *= np.float32(_CHANGE)
        adapters[number] = ActiveAdapter(feeds, None, manifest.head is not None)
    with AdapterStack(manifest, _MIXED_MEMORY).loaded(list(adapters), adapters) as stacked:
        if stacked is None:
            return GraphVerdict(file, LARGEST, "adapters too large for a stack", False)
        mixed = bundle.graph(file).run({**given, **stacked})
    errors: dict[str, float] = {}
    by_row = [s.name for s in manifest.outputs if s.shape[:1] == (batch,)]
    for row, (rank, active) in enumerate(zip(_MIXED_RANKS, adapters.values(), strict=True)):
        alone = bundle.forward.run({**given, **active.feeds}, by_row)
        for name in by_row:
            wanted, got = alone[name][[row]], mixed[name][[row]]
            own = got if manifest.head is None else got[..., : wanted.shape[-1]]  # the rest is other rows' classes
            errors[f"{name} with rank {rank}"] = _gap(own, wanted)
    errors = errors or {"no output has rows": 0.0}
    where = max(errors, key=lambda name: errors[name])
    tolerance = ROUNDED_TOLERANCE if _rounds(bundle) else MIXED_TOLERANCE
    return GraphVerdict(file, bounded(errors[where]), where, errors[where] <= tolerance)


def check_prefix(bundle: Bundle, prefix: Prefix, inputs: Feeds, rng: np.random.Generator) -> list[GraphVerdict]:
    """The graphs that go on from a prefix, against those of the whole model, with no adapter outside its points."""
    values = whole_adapter(bundle, inputs, rng)
    absent = absent_adapter(bundle.manifest)
    outside = [p for p in bundle.manifest.points if p.id not in prefix.points]
    values |= {name: absent[name] for p in outside for name in (p.input_a, p.input_b)}
    kept = bundle.graph(prefix.file).run(inputs)
    made = bundle.forward.run({**inputs, **values})
    pairs = [(prefix.forward, made, {**inputs, **values})]
    for record in prefix.training:
        whole = bundle.training(record.loss, record.dropout)
        feeds = {**inputs, **values, **loss_feeds(bundle.manifest, whole, inputs, made, rng)}
        pairs.append((record.file, bundle.graph(whole.file).run(feeds), feeds))
    return [_same(bundle, file, expected, {**feeds, **kept}) for file, expected, feeds in pairs]


def check_recomputed(
    bundle: Bundle, record: TrainingGraph, file: str, inputs: Feeds, rng: np.random.Generator
) -> GraphVerdict:
    """A graph that recomputes against the plain one, under random masks."""
    values = whole_adapter(bundle, inputs, rng)
    made = bundle.forward.run({**inputs, **values})
    feeds: Feeds = {**inputs, **values, **loss_feeds(bundle.manifest, record, inputs, made, rng)}
    for spec in record.inputs:
        if spec.dtype == "uint8":
            feeds[spec.name] = (rng.random(feeds[spec.name].shape) < 0.7).astype(np.uint8)
    return _same(bundle, file, bundle.graph(record.file).run(feeds), feeds)


def _same(bundle: Bundle, file: str, expected: Feeds, feeds: Feeds) -> GraphVerdict:
    """Whether the graph returns what is expected."""
    errors = {name: _gap(y, expected[name]) for name, y in bundle.graph(file).run(feeds).items()}
    where = max(errors, key=lambda name: errors[name])
    tolerance = ROUNDED_TOLERANCE if _rounds(bundle) else SAME_TOLERANCE
    return GraphVerdict(file, bounded(errors[where]), where, errors[where] <= tolerance)


def _expected(bundle: Bundle, record: TrainingGraph, feeds: Feeds, made: Feeds, graphs: str = LORA_GRAPHS) -> Feeds:
    """What a graph must return for `feeds`, masks of ones among them; nothing for a loss without a reference."""
    twin = bundle.graph(bundle.training("cotangent", dropout=False, graphs=graphs).file)
    if record.loss == "cotangent":
        return twin.run(feeds)
    if record.loss not in REFERENCES:
        return {}
    ((name, y),) = made.items()
    loss, dy = REFERENCES[record.loss](y.astype(np.float64), feeds)
    return {"loss": np.asarray(loss), **twin.run({**feeds, f"cotangent.{name}": dy.astype(np.float32)})}


def _slope_error(
    bundle: Bundle, record: TrainingGraph, feeds: Feeds, names: list[str], rng: np.random.Generator
) -> float:
    """The gradients of `names` in a loss graph along one direction, against differences of the graph's own loss."""
    graph = bundle.graph(record.file)

    def place(at: Feeds) -> tuple[list[NDArray[Any]], Function, Function]:
        wanted = [f"grad.{n}" for n in names]
        grads = graph.run({**feeds, **at}, wanted)
        directions = {n: _direction(at[n], grads[f"grad.{n}"], rng) for n in names}

        def moved(step: float) -> Feeds:
            return {**feeds, **{n: at[n] + np.float32(step) * directions[n] for n in names}}

        def loss(step: float) -> float:
            return float(graph.run(moved(step), ["loss"])["loss"])

        def slope(step: float) -> float:
            there = graph.run(moved(step), wanted)
            return float(sum((there[f"grad.{n}"].astype(np.float64) * directions[n]).sum() for n in names))

        return [grads[f"grad.{n}"].astype(np.float64) * directions[n] for n in names], loss, slope

    values = {n: feeds[n] for n in names}
    if _rounds(bundle):
        places = [place(_nearby(values, rng)) for _ in range(_PLACES)]
        return fit_staircase([(float(sum(p.sum() for p in parts)), loss) for parts, loss, _ in places])[2]
    parts, loss, slope = place(values)
    return slope_along(loss, slope, parts)[2]


def whole_adapter(bundle: Bundle, inputs: Feeds, rng: np.random.Generator) -> Feeds:
    """A random adapter at every point and a random head; together they change the outputs by a tenth."""
    manifest = bundle.manifest
    values: Feeds = {}
    for point in manifest.points:
        values[point.input_a], values[point.input_b] = _random_pair(point, rng)
    head = random_head(manifest, rng)
    factor = _gentle(bundle, {**inputs, **absent_adapter(manifest), **head}, values)
    for point in manifest.points:
        values[point.input_b] *= factor
    return {**values, **head}


def loss_feeds(
    manifest: Manifest, record: TrainingGraph, inputs: Feeds, outputs: Feeds, rng: np.random.Generator
) -> Feeds:
    """Values for what a training graph takes beside the model's inputs and the adapter: masks of ones, labels, …"""
    sizes = {str(d): n for s in manifest.inputs for d, n in zip(s.shape, inputs[s.name].shape, strict=True)}
    sizes |= {str(d): n for s in manifest.outputs for d, n in zip(s.shape, outputs[s.name].shape, strict=True)}
    rows = len(next(iter(outputs.values())))
    sizes["pairs"] = rows
    made: Feeds = {}
    for spec in record.inputs:
        shape = [evaluate_dimension(d, sizes) for d in spec.shape]
        if spec.name in ("anchors", "positives", "negatives"):
            made[spec.name] = (np.arange(rows) + ("anchors", "positives", "negatives").index(spec.name)) % rows
        elif spec.name == "labels":
            made[spec.name] = rng.integers(0, _OUTPUTS, shape)
        elif spec.name == "loss_weight":
            some = rng.random(shape) < 0.7 if len(shape) > 1 else 1.0  # of tokens, not all have a label
            made[spec.name] = (some * rng.uniform(0.5, 1.5, shape) / np.prod(shape)).astype(np.float32)
        elif spec.name in ("margin", "inverse_temperature"):
            made[spec.name] = np.asarray(4.0, np.float32)
        elif spec.dtype == "uint8":
            made[spec.name] = np.ones(shape, np.uint8)
        else:
            made[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return made


def _random_pair(
    point: InsertionPoint, rng: np.random.Generator, rank: int = _RANK
) -> tuple[NDArray[Any], NDArray[Any]]:
    rank = -(-rank // point.groups) * point.groups
    inputs, inner = point.in_features * math.prod(point.kernel), rank // point.groups
    a = rng.standard_normal(point.shape_a(rank)).astype(np.float32) / np.float32(inputs**0.5)
    b = rng.standard_normal(point.shape_b(rank)).astype(np.float32) / np.float32(inner**0.5)
    return a, b


def _direction(x: NDArray[Any], gradient: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
    length = float(np.linalg.norm(gradient))
    own = 2 * gradient / length if 0 < length < np.inf else 0.0
    return ((rng.standard_normal(x.shape) + own) * max(float(x.std()), 1e-3)).astype(np.float32)


def _gap(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The norm of the difference relative to the norm of what is wanted."""
    if got.shape != wanted.shape:
        return LARGEST
    gap = float(np.linalg.norm(np.asarray(got, np.float64) - wanted))
    return bounded(gap / max(float(np.linalg.norm(np.asarray(wanted, np.float64))), 1e-6))


def _gentle(bundle: Bundle, base: Feeds, values: Feeds) -> np.float32:
    """A factor for every B at which the adapter changes the outputs by a tenth: well seen and still smooth.

    A point that hardly shows (a query where attention is flat) is turned up, as far as that helps.
    """
    off = bundle.forward.run(base)

    def change(factor: float) -> float:
        scaled = {n: x * np.float32(factor) if n.endswith(".lora_B") else x for n, x in values.items()}
        on = bundle.forward.run({**base, **scaled})
        return max(float(np.linalg.norm(on[n] - off[n]) / (np.linalg.norm(off[n]) + 1e-12)) for n in off)

    factor, seen = 1.0, change(1.0)
    while 0 < seen < _CHANGE / 4 and factor < _LOUDEST:
        factor *= 4
        seen = change(factor)
    return np.float32(factor * min(1.0, _CHANGE / max(seen, 1e-6)))


def random_head(manifest: Manifest, rng: np.random.Generator, outputs: int = _OUTPUTS) -> Feeds:
    """A random head, if the task has one."""
    head = manifest.head
    if head is None:
        return {}
    weight = rng.standard_normal((outputs, head.features)).astype(np.float32) / np.float32(head.features**0.5)
    return {head.weight: weight, head.bias: rng.standard_normal(outputs).astype(np.float32)}
