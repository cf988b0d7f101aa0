"""Derivatives of a function that can only be evaluated, and how far a gradient is from them.

The function is an inference graph in float32, along one direction. It may be smooth, bend at a ReLU or a maximum, or
be a staircase where activations are rounded to codes: each is asked in the way that its noise allows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRADIENT_TOLERANCE = 2e-2
ROUNDED_TOLERANCE = 0.25
LARGEST = 1e9
_STEP, _SMOOTH = 4e-2, 5e-3
_STRETCHES = ((1e-2, 4), (1e-2, 16), (8e-2, 16), (2.5e-3, 16), (2.5e-4, 16))  # and parts of each
_LONG, _COUNTS = (1e-2, 8e-2), (16, 48, 144, 432)  # where jumps are many; each has the middles of the one before
_FINEST, _KNOWN = _COUNTS[-1], GRADIENT_TOLERANCE
_COARSE_STEPS, _SURE = (0.08, 0.16, 0.32, 0.64, 0.04, 0.02), 0.95

Function = Callable[[float], float]


def slope_along(value: Function, slope: Function, parts: list[NDArray[Any]]) -> tuple[float, float, float]:
    """The gradient along a direction, the derivative of `value` by differences, and their relative gap.

    `parts` are the gradient's terms at 0, `slope` is their sum at any place. Central differences at two steps
    are extrapolated (Richardson): where the function is smooth, curvature and the float32 forward pass leave
    about 1e-3. Where it bends, at a ReLU or a maximum, differences tell no slope of a place, but the mean of a
    stretch: (f(h) − f(−h))/2h = mean of f′ over [−h, h], whatever kinks there are. The gradient's mean is taken
    at the middles of equal parts, so that a kink is misplaced by a part at most; a step of that size would drown
    in rounding. Few parts often do, and a gradient costs more than a value. Where a short stretch drowns in
    rounding, for other tensors move the outputs far more, a long one does not. Where the slope jumps by as much as it
    is, few parts tell no mean: so long as its jumps from part to part are no less than the gap, there are more.
    """
    slope = functools.cache(slope)
    analytic, numeric = float(sum(p.sum() for p in parts)), extrapolated(value)
    best = (analytic, numeric, relative(analytic, numeric, parts))
    for number, (stretch, count) in enumerate(_STRETCHES if best[2] > _SMOOTH else ()):
        found, _ = _mean_along(value, slope, parts, stretch, count)
        best = min(best, found, key=lambda one: one[2]) if number else found
        if best[2] <= GRADIENT_TOLERANCE:
            return best
    for stretch in _LONG if best[2] > _SMOOTH else ():
        for count in _COUNTS:
            found, unsure = _mean_along(value, slope, parts, stretch, count)
            if not found[2] <= unsure:
                break
            if unsure <= _KNOWN or count == _FINEST:  # what few parts tell by chance counts for nothing here
                best = min(best, found, key=lambda one: one[2])
                break
        if best[2] <= GRADIENT_TOLERANCE:
            break
    return best


def _mean_along(
    value: Function, slope: Function, parts: list[NDArray[Any]], stretch: float, count: int
) -> tuple[tuple[float, float, float], float]:
    """The slope's mean over [−stretch, stretch] from the middles of equal parts, that by differences, and their gap.

    And how far the mean may be from that of all places: a jump is anywhere between two middles, so that its error is
    its height times a part, evenly spread within half of it to both sides; of all jumps three standard deviations.
    """
    middles = range(_FINEST // count, 2 * _FINEST, 2 * _FINEST // count)  # whole numbers: those of thrice the parts too
    slopes = np.array([slope(stretch * (at / _FINEST - 1)) for at in middles])
    mean, numeric = float(np.mean(slopes)), (value(stretch) - value(-stretch)) / (2 * stretch)
    spread = float(np.sqrt((np.diff(slopes) ** 2).sum() / 12)) / count
    scale = _scale(mean, numeric, parts)
    return (mean, numeric, relative(mean, numeric, parts)), 3 * spread / scale


def extrapolated(value: Function) -> float:
    """The derivative at 0 of a smooth function, by central differences at two steps."""
    coarse, fine = ((value(h) - value(-h)) / (2 * h) for h in (_STEP, _STEP / 2))
    return (4 * fine - coarse) / 3


def relative(analytic: float, numeric: float, parts: list[NDArray[Any]]) -> float:
    """The gap of both, relative to the larger, or to what terms of random signs come to."""
    return bounded(abs(analytic - numeric) / _scale(analytic, numeric, parts))


def _scale(analytic: float, numeric: float, parts: list[NDArray[Any]]) -> float:
    return max(abs(analytic), abs(numeric), *(float(np.sqrt((p**2).sum())) for p in parts), 1e-12)


def fit_staircase(places: list[tuple[Function, Function]]) -> tuple[float, float, float]:
    """Analytic slopes a against coarse differences n of a staircase: |a|, n along a, and how far they are apart.

    A place is its slope and its value along its direction. A difference is the mean of slopes over its step, along
    which codes may saturate: a is that mean too, by trapezoids between the places where a slope was asked. Rounding
    adds noise to every n, and none to the least-squares factor of n = factor·a in the mean. Places steeper than most
    count no more than these: along them codes move by more, and so does the noise. The gap is the larger of
    |1 − factor| and 1 − correlation: a wrong sign or scale moves the one, a wrong part the other. The first step that
    noise hardly shows in decides, else the best one; slopes at 0 tell which that may be, for values are had for less.
    Where nothing moves at any step and every slope is 0, there is no gap.
    """
    slopes = [{0.0: slope(0.0)} for slope, _ in places]
    differences: dict[float, NDArray[np.float64]] = {}

    def numeric_at(step: float) -> NDArray[np.float64]:
        if step not in differences:
            differences[step] = np.array([(value(step) - value(-step)) / (2 * step) for _, value in places])
        return differences[step]

    def analytic_at(step: float) -> NDArray[np.float64]:
        for (slope, _), known in zip(places, slopes, strict=True):
            known |= {at: slope(at) for at in (-step, -step / 2, step / 2, step) if at not in known}
        return np.array([_mean_within(step, known) for known in slopes])

    middle = np.array([known[0.0] for known in slopes])
    likely = next((step for step in _COARSE_STEPS if _correlation(numeric_at(step), middle) >= _SURE), _COARSE_STEPS[0])
    best, moves = (0.0, 0.0, LARGEST), False
    for step in (likely, *(other for other in _COARSE_STEPS if other != likely)):
        analytic, numeric = analytic_at(step), numeric_at(step)
        moves = moves or bool(analytic.any() or numeric.any())
        weights = _alike(analytic)
        analytic, numeric = weights * analytic, weights * numeric
        length = float(np.linalg.norm(analytic))
        along, correlation = float(numeric @ analytic) / max(length, 1e-12), _correlation(numeric, analytic)
        gap = bounded(max(abs(1 - along / max(length, 1e-12)), 1 - correlation))
        found = (finite(length), finite(along), gap)
        if correlation >= _SURE:
            return found
        best = min(best, found, key=lambda one: one[2])
    return best if moves else (0.0, 0.0, 0.0)


def _alike(slopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights that bring slopes steeper than the median one to its size; ones where most places are still."""
    median = float(np.median(np.abs(slopes)))
    return median / np.maximum(np.abs(slopes), median) if median else np.ones_like(slopes)


def _correlation(numeric: NDArray[np.float64], analytic: NDArray[np.float64]) -> float:
    """The cosine of both: differences have no mean of their own that were to be taken off."""
    along = float(numeric @ analytic) / max(float(np.linalg.norm(analytic)), 1e-12)
    return along / max(float(np.linalg.norm(numeric)), 1e-12)


def _mean_within(step: float, known: dict[float, float]) -> float:
    """The mean of a function over [-step, step], of which it is known at both ends and at places between them."""
    at = np.array(sorted(x for x in known if abs(x) <= step))
    y = np.array([known[x] for x in at])
    return float(((y[1:] + y[:-1]) * np.diff(at)).sum() / (4 * step))


def bounded(error: float) -> float:
    """An error that JSON can hold: it has neither infinity nor NaN."""
    return error if error <= LARGEST else LARGEST


def finite(x: float) -> float:
    return float(np.clip(np.nan_to_num(x, nan=LARGEST), -LARGEST, LARGEST))
