"""The terms of a detector's loss of one picture, each with its gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelora.vision.boxes import Reals

_LEAST = 1e-12  # of a probability whose logarithm is taken


def sigmoid(z: Reals) -> Reals:
    """1/(1 + exp(−z)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -z))


def softmax(z: Reals) -> Reals:
    """exp(z)/Σ exp(z) along the last axis."""
    made = np.exp(z - z.max(-1, keepdims=True))
    return made / made.sum(-1, keepdims=True)


def binary_cross_entropy(z: Reals, target: Reals) -> tuple[Reals, Reals]:
    """−t·log σ(z) − (1 − t)·log(1 − σ(z)) element by element, and its gradient σ(z) − t."""
    return np.logaddexp(0.0, z) - target * z, sigmoid(z) - target


def cross_entropy(z: Reals, labels: NDArray[np.int64]) -> tuple[Reals, Reals]:
    """−log softmax(z)[label] of each row of `[n, classes]`, and its gradient."""
    p, rows = softmax(z), np.arange(len(z))
    gradient = p.copy()
    gradient[rows, labels] -= 1.0
    return -np.log(np.maximum(p[rows, labels], _LEAST)), gradient


def negative_log(p: Reals, labels: NDArray[np.int64]) -> tuple[Reals, Reals]:
    """−log p[label] of each row of probabilities `[n, classes]`, and its gradient."""
    rows, gradient = np.arange(len(p)), np.zeros_like(p)
    chosen = np.maximum(p[rows, labels], _LEAST)
    gradient[rows, labels] = -1.0 / chosen
    return -np.log(chosen), gradient
