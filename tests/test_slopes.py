"""Slopes by differences: right ones pass behind saturation and behind rounding of short steps, wrong ones fail."""

from __future__ import annotations

import numpy as np
import pytest

from edgelora.slopes import GRADIENT_TOLERANCE, ROUNDED_TOLERANCE, fit_staircase, slope_along


def places(factor: float, width: float, seed: int = 0, codes: int = 64):
    """Slopes, times `factor`, and values of Σ w·q(clip(c + s·d)), with `codes` on each side of the range ±`width`."""
    rng = np.random.default_rng(seed)

    def place():
        c, d, w = rng.uniform(-width, width, 400), rng.standard_normal(400), rng.standard_normal(400)
        w += d  # a direction with a part of the gradient's own

        def value(s: float) -> float:
            return float(w @ (np.rint(np.clip(c + s * d, -width, width) * codes / width) * width / codes))

        return lambda s: factor * float(w @ (d * (np.abs(c + s * d) < width))), value

    return [place() for _ in range(12)]


@pytest.mark.parametrize("width", [0.05, 0.2, 5.0])
def test_saturation_along_a_step_does_not_fail_a_right_slope(width):
    assert fit_staircase(places(1.0, width))[2] <= ROUNDED_TOLERANCE


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 1.6])
@pytest.mark.parametrize("width", [0.05, 5.0])
def test_a_wrong_slope_is_told(factor, width):
    assert fit_staircase(places(factor, width))[2] > ROUNDED_TOLERANCE


def test_slopes_are_asked_at_the_step_that_noise_hardly_shows_in():
    """Five a place: values, which cost less, tell that at shorter steps a staircase of few codes is noise."""
    asked = []

    def counted(slope):
        return lambda step: asked.append(step) or slope(step)

    found = places(1.0, 5.0, codes=1)
    assert fit_staircase([(counted(slope), value) for slope, value in found])[2] <= ROUNDED_TOLERANCE
    assert len(asked) == 5 * len(found) and max(asked) > 0.08


@pytest.mark.parametrize("slope", [0.0, 1e-3])
def test_where_nothing_moves_a_slope_is_nothing(slope):
    """At some steps alone it tells nothing: a staircase is flat within a code."""
    still = [(lambda _: slope, lambda _: 0.0)] * 3
    stairs = [(lambda _: slope, lambda s: float(np.round(s / 0.2)))] * 3
    assert (fit_staircase(still)[2] <= ROUNDED_TOLERANCE) == (slope == 0)
    assert fit_staircase(stairs)[2] > ROUNDED_TOLERANCE


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (0.9, False), (1.1, False), (-1.0, False)])
def test_a_slope_that_rounding_hides_in_short_steps(factor, passes):
    """0.7 a step, in outputs whose rounding is 4e-4."""

    def value(s: float) -> float:
        return 0.7 * s + 4e-4 * float(np.sin(5e5 * s))

    found = slope_along(value, lambda _: 0.7 * factor, [np.array([0.7 * factor])])
    assert (found[2] <= GRADIENT_TOLERANCE) == passes


def jumping(jumps: int, seed: int):
    """A slope of one with jumps, as of a network behind ReLUs that few units pass."""
    rng = np.random.default_rng(seed)
    at, high = rng.uniform(-0.1, 0.1, jumps), rng.standard_normal(jumps) / 8

    def slope(s: float) -> float:
        return 1.0 + float(high @ (at < s))

    def value(s: float) -> float:
        return s + float(high @ np.maximum(s - at, 0))

    return slope, value


@pytest.mark.parametrize("seed", range(12))
def test_a_slope_that_jumps_by_as_much_as_it_is(seed):
    slope, value = jumping(600, seed)
    assert slope_along(value, slope, [np.array([slope(0)])])[2] <= GRADIENT_TOLERANCE


@pytest.mark.parametrize(("factor", "most"), [(-1.0, 1), (0.0, 0), (0.9, 20), (1.1, 20)])
def test_a_wrong_slope_is_told_among_jumps(factor, most):
    """Of a hundred `most` pass: their few middles lie where the slope happens to be what is wrong."""
    passed = 0
    for seed in range(100):
        slope, value = jumping(600, seed)
        wrong = [np.array([factor * slope(0)])]
        passed += slope_along(value, lambda s, right=slope: factor * right(s), wrong)[2] <= GRADIENT_TOLERANCE
    assert passed <= most


def test_a_slope_that_is_wrong_beyond_its_jumps_is_asked_at_few_places():
    slope, value = jumping(600, 0)
    asked = []
    slope_along(value, lambda s: asked.append(s) or -slope(s), [np.array([-slope(0)])])
    assert len(asked) < 120
