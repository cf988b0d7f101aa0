"""Slopes of staircases: found where codes saturate along a step, and wrong ones told."""

from __future__ import annotations

import numpy as np
import pytest

from edgelora.slopes import ROUNDED_TOLERANCE, fit_staircase


def places(factor: float, width: float, seed: int = 0):
    """Slopes, times `factor`, and values of Σ w·q(clip(c + s·d)), with codes of 1/64 of the range ±`width`."""
    rng = np.random.default_rng(seed)

    def place():
        c, d, w = rng.uniform(-width, width, 400), rng.standard_normal(400), rng.standard_normal(400)
        w += d  # a direction with a part of the gradient's own

        def value(s: float) -> float:
            return float(w @ (np.rint(np.clip(c + s * d, -width, width) * 64 / width) * width / 64))

        return lambda s: factor * float(w @ (d * (np.abs(c + s * d) < width))), value

    return [place() for _ in range(12)]


@pytest.mark.parametrize("width", [0.05, 0.2, 5.0])
def test_saturation_along_a_step_does_not_fail_a_right_slope(width):
    assert fit_staircase(places(1.0, width))[2] <= ROUNDED_TOLERANCE


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 1.6])
@pytest.mark.parametrize("width", [0.05, 5.0])
def test_a_wrong_slope_is_told(factor, width):
    assert fit_staircase(places(factor, width))[2] > ROUNDED_TOLERANCE
