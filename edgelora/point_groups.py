"""Gradients of a language model's points against differences, a group of points at a time.

Its points are hundreds, and a run is dear however short its rows are, for it reads all weights. One run returns the
gradients of all points, and one difference serves a group: all of their A, then all of their B, move at once, each
along a direction of its own towards what its gradient says. The whole gap counts as that of each point, beside that
point's own slope, so each is held to what a point alone is held to. Two errors could undo each other, in opposite
directions and of the same size: so A and B move apart, and the points of a group are far from each other, in other
layers and of other kinds. Where a group does not pass, its halves are asked along the same directions, down to a
tensor alone, which is asked as everywhere (slopes.py): what is wrong there is as wrong as it was in the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from edgelora.bundle import Bundle
from edgelora.gradient_checks import (
    PointVerdict,
    direction_of,
    gradients_at,
    graphs_of_outputs,
    without_points,
)
from edgelora.manifest import LORA_GRAPHS, InsertionPoint
from edgelora.probes import Feeds, gentle_factor, random_cotangents, random_pair
from edgelora.slopes import GRADIENT_TOLERANCE, extrapolated, finite, relative, slope_along

_TOGETHER = 8
_LOUDER = 64.0  # a quiet point beside the middle one, at most

Points = Sequence[InsertionPoint]
Slopes = tuple[float, float, float]


def check_points(
    bundle: Bundle,
    points: Points,
    inputs: Feeds,
    rng: np.random.Generator,
    progress: Callable[[int, InsertionPoint], None] = lambda _done, _next: None,
) -> list[PointVerdict]:
    """A verdict on each point, in their order; `progress` is told how many are done, and which is next.

    Activations must not be rounded: outputs that are staircases tell too little of points that move together.
    """
    loud = _loudness(bundle, points, inputs, rng)
    count = -(-len(points) // _TOGETHER)
    found: dict[str, PointVerdict] = {}
    for number in range(count):
        progress(len(found), points[number])
        found |= _check_group(bundle, points[number::count], inputs, loud, rng)
    return [found[point.id] for point in points]


def _check_group(
    bundle: Bundle, points: Points, inputs: Feeds, loud: dict[str, float], rng: np.random.Generator
) -> dict[str, PointVerdict]:
    """The verdicts on points that are asked together; of A and of B the one with the larger gap."""
    base, values = without_points(bundle, inputs, rng), dict[str, np.ndarray]()
    for point in points:
        values[point.input_a], b = random_pair(point, rng)
        values[point.input_b] = b / np.float32(loud[point.id])
    factor = gentle_factor(bundle, base, values)
    for point in points:
        values[point.input_b] *= factor
    forward, graph = graphs_of_outputs(bundle, LORA_GRAPHS)
    here: Feeds = forward.run({**base, **values})
    weights = random_cotangents(here, rng)
    gradients = gradients_at(graph, {**base, **values}, weights, list(values))
    directions = {n: direction_of(values[n], gradient, rng) for n, gradient in gradients.items()}
    for name, direction in directions.items():  # all uphill, so that a like error of many adds up
        directions[name] = -direction if float((gradients[name] * direction).sum()) < 0 else direction
    parts = {n: gradients[n] * d for n, d in directions.items()}

    def moved(names: Sequence[str], step: float) -> Feeds:
        return {**base, **values, **{n: values[n] + np.float32(step) * directions[n] for n in names}}

    def value(names: Sequence[str], step: float) -> float:
        there = forward.run(moved(names, step))
        return sum(float(np.sum((there[n] - here[n]) * w.astype(np.float64))) for n, w in weights.items())

    def slope(name: str, step: float) -> float:
        return float((gradients_at(graph, moved([name], step), weights, [name])[name] * directions[name]).sum())

    def found(names: Sequence[str]) -> dict[str, Slopes]:
        """Of each tensor its slope, the differences' and their relative gap; of several that do not pass by halves."""
        if len(names) == 1:
            (name,) = names
            return {name: slope_along(partial(value, names), partial(slope, name), [parts[name]])}
        slopes = {n: float(parts[n].sum()) for n in names}
        gap = extrapolated(partial(value, names)) - sum(slopes.values())
        made = {n: (x, x + gap, relative(x, x + gap, [parts[n]])) for n, x in slopes.items()}
        if all(error <= GRADIENT_TOLERANCE for _, _, error in made.values()):
            return made
        middle = len(names) // 2
        return found(names[:middle]) | found(names[middle:])

    of_a, of_b = found([p.input_a for p in points]), found([p.input_b for p in points])
    return {p.id: _verdict(p.id, max(of_a[p.input_a], of_b[p.input_b], key=lambda one: one[2])) for p in points}


def _verdict(name: str, found: Slopes) -> PointVerdict:
    analytic, numeric, error = found
    return PointVerdict(name, finite(analytic), finite(numeric), error, error <= GRADIENT_TOLERANCE)


def _loudness(bundle: Bundle, points: Points, inputs: Feeds, rng: np.random.Generator) -> dict[str, float]:
    """How far each point's B moves the outputs, to first order, beside the middle point of all: by one gradient."""
    base = without_points(bundle, inputs, rng)
    still: Feeds = {}
    sizes: dict[str, float] = {}
    for point in points:
        still[point.input_a], b = random_pair(point, rng)
        still[point.input_b], sizes[point.id] = np.zeros_like(b), float(b.std())
    forward, graph = graphs_of_outputs(bundle, LORA_GRAPHS)
    weights = random_cotangents(forward.run({**base, **still}), rng)
    gradients = gradients_at(graph, {**base, **still}, weights, [point.input_b for point in points])
    moves = {p.id: float(np.linalg.norm(gradients[p.input_b])) * sizes[p.id] for p in points}
    middle = float(np.median(list(moves.values())))
    if not 0 < middle < np.inf:
        return dict.fromkeys(moves, 1.0)
    return {
        name: float(np.nan_to_num(np.clip(move / middle, 1 / _LOUDER, _LOUDER), nan=1.0))
        for name, move in moves.items()
    }
