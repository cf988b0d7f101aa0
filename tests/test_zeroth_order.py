"""The SPSA estimate: right on average, reproducible, and the parameters come back bit for bit."""

import numpy as np
import pytest

from edgelora.zeroth_order import spsa


def quadratic(size=6):
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((size, size))
    hessian = matrix @ matrix.T
    slope = rng.standard_normal(size)
    parameters = rng.standard_normal(size).astype(np.float32)

    def loss():
        x = parameters.astype(np.float64)
        return float(0.5 * x @ hessian @ x + slope @ x)

    return parameters, loss, hessian @ parameters.astype(np.float64) + slope


def test_the_mean_estimate_is_the_gradient():
    parameters, loss, exact = quadratic()
    estimate = np.zeros_like(parameters)
    seen = spsa(loss, parameters, estimate, np.random.default_rng(0), directions=20_000)
    assert np.linalg.norm(estimate - exact) < 0.05 * np.linalg.norm(exact)
    assert seen == pytest.approx(loss(), abs=1e-2)


def test_one_direction_is_the_slope_along_it():
    parameters, loss, exact = quadratic()
    estimate = np.zeros_like(parameters)
    spsa(loss, parameters, estimate, np.random.default_rng(3), epsilon=1e-2)
    z = np.random.default_rng(3).standard_normal(len(parameters), np.float32)
    np.testing.assert_allclose(estimate, (exact @ z) * z, rtol=1e-3)


def test_parameters_come_back_bit_for_bit_whatever_happens():
    parameters, loss, _ = quadratic()
    before = parameters.tobytes()
    spsa(loss, parameters, np.zeros_like(parameters), np.random.default_rng(0), directions=3)
    assert parameters.tobytes() == before

    def failing():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        spsa(failing, parameters, np.zeros_like(parameters), np.random.default_rng(0))
    assert parameters.tobytes() == before
