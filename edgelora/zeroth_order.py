"""A gradient from forward passes alone: simultaneous perturbation (SPSA; Spall 1992, MeZO: arXiv:2305.17333).

For a random direction z with E[z·zᵀ] = I,

    g = (L(θ + ε·z) − L(θ − ε·z))/2ε · z

estimates the gradient without bias up to O(ε²). Both evaluations see the same samples (common random
numbers), so that what they differ by is the perturbation. It is an estimate, and a poor one: its variance grows
with the number of parameters, so a step moves far less than an exact gradient's, and many more are needed.
What it costs is two forward passes a direction, and no memory beyond the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Flat = NDArray[np.float32]


def spsa(
    loss: Callable[[], float],
    parameters: Flat,
    gradient: Flat,
    rng: np.random.Generator,
    directions: int = 1,
    epsilon: float = 1e-3,
) -> float:
    """Write the mean estimate over `directions` into `gradient`; returns the mean of the losses seen.

    `loss` evaluates L at `parameters` `[n]`, which are moved in place and put back bit for bit. `gradient`
    is `[n]`. The directions are standard normal, drawn from `rng`.
    """
    start = parameters.copy()
    gradient[:] = 0.0
    seen = 0.0
    try:
        for _ in range(directions):
            z = rng.standard_normal(len(parameters), np.float32)
            parameters[:] = start + np.float32(epsilon) * z
            ahead = loss()
            parameters[:] = start - np.float32(epsilon) * z
            behind = loss()
            gradient += np.float32((ahead - behind) / (2 * epsilon * directions)) * z
            seen += (ahead + behind) / (2 * directions)
    finally:
        parameters[:] = start
    return seen
