"""Gradients against finite differences: of a point or the head, and of a loss along one direction.

The cotangent graph is held against the inference graph: f(θ) = Σ <c, output(θ)> is evaluated by the inference graph,
its derivative along a direction by differences. A loss graph is held against differences of its own loss. Of a language
model, whose logits are too many to weigh, the loss graph is the cotangent graph of what tokens cost.

Where activations are rounded to int8, outputs are staircases: there gradients along a step are held against differences
at many places at once, and no tolerance is finer than the steps (docs/bundle-format.md, precision).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.manifest import LORA_GRAPHS, InsertionPoint, TrainingGraph
from edgelora.probes import Feeds, gentle_factor, random_cotangents, random_head, random_pair
from edgelora.session import Graph
from edgelora.slopes import GRADIENT_TOLERANCE, ROUNDED_TOLERANCE, Function, finite, fit_staircase, slope_along

Gradients = dict[str, NDArray[np.float64]]
_PLACES, _MORE_PLACES, _SPOTS, _SPREAD = 12, 36, 8, 0.3


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


def check_point(
    bundle: Bundle, point: InsertionPoint, inputs: Feeds, rng: np.random.Generator, together: bool = False
) -> PointVerdict:
    """One point's A and B, all other points absent; see `against_differences` for `together`."""
    a, b = random_pair(point, rng)
    base = without_points(bundle, inputs, rng)
    b *= gentle_factor(bundle, base, {point.input_a: a, point.input_b: b})
    return against_differences(bundle, point.id, base, {point.input_a: a, point.input_b: b}, rng, together=together)


def without_points(bundle: Bundle, inputs: Feeds, rng: np.random.Generator) -> Feeds:
    """What graphs take where all points are absent: a random head if there is one, labels of a language model."""
    base: Feeds = {**inputs, **absent_adapter(bundle.manifest), **random_head(bundle.manifest, rng)}
    if (language := bundle.manifest.language) is not None:
        base["labels"] = rng.integers(0, language.vocabulary, inputs["input_ids"].shape)
    return base


def check_head(bundle: Bundle, inputs: Feeds, rng: np.random.Generator) -> PointVerdict:
    """The head's weight and bias, all points absent."""
    head = bundle.manifest.head
    assert head is not None
    base: Feeds = {**inputs, **absent_adapter(bundle.manifest)}
    return against_differences(bundle, head.name, base, random_head(bundle.manifest, rng), rng)


def against_differences(
    bundle: Bundle,
    name: str,
    base: Feeds,
    values: Feeds,
    rng: np.random.Generator,
    graphs: str = LORA_GRAPHS,
    together: bool = False,
) -> PointVerdict:
    """The cotangent graph's gradient of each tensor of `values` against the inference graph's slope; the worst.

    The direction is noise plus twice the gradient's own, so that neither a wrong part of a gradient nor
    a wrong size of it can go unseen. Outputs weigh alike, so that a quiet one is seen beside a loud one.
    Where activations are rounded, all tensors move at once if `together` is asked: a verdict on their sum.
    """
    forward, graph = graphs_of_outputs(bundle, graphs)
    if rounds_activations(bundle):
        moving = [list(values)] if together else [[tensor] for tensor in values]
        found = [_on_average(forward, graph, base, values, tensors, rng) for tensors in moving]
        rounded = [PointVerdict(name, a, n, error, error <= ROUNDED_TOLERANCE) for a, n, error in found]
        return max(rounded, key=lambda verdict: verdict.error)
    here: Feeds = forward.run({**base, **values})
    weights = random_cotangents(here, rng)

    def gradient_at(at: Feeds, tensor: str) -> NDArray[np.float64]:
        return gradients_at(graph, {**base, **at}, weights, [tensor])[tensor]

    def along(tensor: str) -> PointVerdict:
        gradient = gradient_at(values, tensor)
        direction = direction_of(values[tensor], gradient, rng)

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


def graphs_of_outputs(bundle: Bundle, graphs: str) -> tuple[Graph, Graph]:
    """A graph of outputs, and the one of the gradients of Σ <weight, output> for any weights.

    A language model's outputs are what its tokens cost, of which its loss is such a sum.
    """
    language = bundle.manifest.language
    if language is not None and graphs == LORA_GRAPHS:
        return bundle.graph(language.score), bundle.graph(bundle.training("cross-entropy", dropout=False).file)
    record = bundle.training("cotangent", dropout=False, graphs=graphs)
    return bundle.forward_in(graphs), bundle.graph(record.file)


def gradients_at(graph: Graph, feeds: Feeds, weights: Feeds, tensors: Sequence[str]) -> Gradients:
    """d Σ <weight, output>/d tensor of each by the cotangent graph; zeros where no output depends on it."""
    cotangents = {"loss_weight" if n == "nll" else f"cotangent.{n}": w for n, w in weights.items()}
    wanted = [f"grad.{name}" for name in tensors]
    found = graph.run({**feeds, **cotangents}, [name for name in wanted if name in graph.outputs])
    return {n: np.asarray(found.get(f"grad.{n}", np.zeros(feeds[n].shape)), np.float64) for n in tensors}


def _on_average(
    forward: Graph, graph: Graph, base: Feeds, values: Feeds, moving: Sequence[str], rng: np.random.Generator
) -> tuple[float, float, float]:
    """The gradients of the tensors `moving` and the outputs' slope, at places around `values`; see `fit_staircase`.

    Where noise leaves that open, a gradient and its differences are means over spots around each place; where these do,
    more places are asked: of a right gradient noise shows the less the more there are, and of a wrong one its error.
    """

    def gradients_of(at: Feeds, weights: Feeds) -> Gradients:
        return gradients_at(graph, {**base, **at}, weights, moving)

    def place() -> tuple[Feeds, Feeds, Feeds, Gradients]:
        at = _nearby(values, rng)
        here: Feeds = forward.run({**base, **at})
        weights: Feeds = {n: rng.standard_normal(y.shape).astype(np.float32) for n, y in here.items()}
        gradients = gradients_of(at, weights)
        return at, weights, {n: direction_of(at[n], gradients[n], rng) for n in moving}, gradients

    def spot(
        at: Feeds, weights: Feeds, directions: Feeds, gradients: Gradients | None = None
    ) -> tuple[Function, Function]:
        here: Feeds = forward.run({**base, **at})

        def moved(step: float) -> Feeds:
            return {**at, **{n: at[n] + np.float32(step) * d for n, d in directions.items()}}

        def value(step: float) -> float:
            there = forward.run({**base, **moved(step)})
            return sum(float(np.sum((there[n] - here[n]) * w.astype(np.float64))) for n, w in weights.items())

        def slope(step: float) -> float:
            there = gradients if step == 0 and gradients is not None else gradients_of(moved(step), weights)
            return sum(float((there[n] * d).sum()) for n, d in directions.items())

        return slope, value

    def around(at: Feeds, weights: Feeds, directions: Feeds) -> tuple[Function, Function]:
        spots = [spot(_nearby(at, rng), weights, directions) for _ in range(_SPOTS)]
        return (
            lambda step: sum(slope(step) for slope, _ in spots) / _SPOTS,
            lambda step: sum(value(step) for _, value in spots) / _SPOTS,
        )

    places = [place() for _ in range(_PLACES)]
    alone = [spot(*one) for one in places]
    found = fit_staircase(alone)
    if found[2] > ROUNDED_TOLERANCE:
        found = fit_staircase([around(*one[:3]) for one in places])
    if found[2] > ROUNDED_TOLERANCE:
        found = fit_staircase([*alone, *(spot(*place()) for _ in range(_MORE_PLACES))])
    return found


def loss_slope_error(
    bundle: Bundle, record: TrainingGraph, feeds: Feeds, names: list[str], rng: np.random.Generator
) -> float:
    """The gradients of `names` in a loss graph along one direction, against differences of the graph's own loss."""
    graph = bundle.graph(record.file)

    def place(at: Feeds) -> tuple[list[NDArray[Any]], Function, Function]:
        wanted = [f"grad.{n}" for n in names]
        grads = graph.run({**feeds, **at}, wanted)
        directions = {n: direction_of(at[n], grads[f"grad.{n}"], rng) for n in names}

        def moved(step: float) -> Feeds:
            return {**feeds, **{n: at[n] + np.float32(step) * directions[n] for n in names}}

        @functools.cache
        def both(step: float) -> tuple[float, float]:  # a run takes as long for the one as for both
            there = graph.run(moved(step), ["loss", *wanted])
            slope = sum((there[f"grad.{n}"].astype(np.float64) * directions[n]).sum() for n in names)
            return float(there["loss"]), float(slope)

        def loss(step: float) -> float:
            return both(step)[0]

        def slope(step: float) -> float:
            return both(step)[1]

        return [grads[f"grad.{n}"].astype(np.float64) * directions[n] for n in names], loss, slope

    values = {n: feeds[n] for n in names}
    if rounds_activations(bundle):
        found, places = np.inf, list[tuple[Function, Function]]()
        for count in (_PLACES, _MORE_PLACES):
            if found > ROUNDED_TOLERANCE:
                asked = [place(_nearby(values, rng)) for _ in range(count)]
                places += [(slope, loss) for _, loss, slope in asked]
                found = fit_staircase(places)[2]
        return found
    parts, loss, slope = place(values)
    return slope_along(loss, slope, parts)[2]


def _nearby(values: Feeds, rng: np.random.Generator) -> Feeds:
    return {n: (x + _SPREAD * x.std() * rng.standard_normal(x.shape)).astype(np.float32) for n, x in values.items()}


def direction_of(x: NDArray[Any], gradient: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise plus twice the gradient's own direction, or its opposite: the one that noise leans to and cannot undo."""
    noise, length = rng.standard_normal(x.shape), float(np.linalg.norm(gradient))
    own = 2 * gradient / length if 0 < length < np.inf else np.zeros(x.shape)
    towards = 1.0 if float((noise * own).sum()) >= 0 else -1.0
    return ((noise + towards * own) * max(float(x.std()), 1e-3)).astype(np.float32)


def rounds_activations(bundle: Bundle) -> bool:
    """Whether activations are rounded, so that outputs are staircases."""
    return bundle.manifest.source.get("precision") in ("int8", "int4")
