"""Overlaps of boxes and their gradients, by torch and by finite differences; suppression by its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.vision.boxes import OVERLAPS, areas, centres, corners, overlap, overlaps, suppress


def boxes(rng: np.random.Generator, count: int, size: float = 40.0) -> np.ndarray:
    low = rng.uniform(0, size, (count, 2))
    return np.concatenate([low, low + rng.uniform(1, size, (count, 2))], axis=1)


def torch_overlap(p: torch.Tensor, t: torch.Tensor, kind: str) -> torch.Tensor:
    low, high = torch.maximum(p[:, :2], t[:, :2]), torch.minimum(p[:, 2:], t[:, 2:])
    inner = (high - low).clamp(min=0).prod(1)
    union = (p[:, 2:] - p[:, :2]).prod(1) + (t[:, 2:] - t[:, :2]).prod(1) - inner
    iou = inner / union
    around = torch.maximum(p[:, 2:], t[:, 2:]) - torch.minimum(p[:, :2], t[:, :2])
    if kind == "iou":
        return iou
    if kind == "giou":
        return iou - (around.prod(1) - union) / around.prod(1)
    away = ((p[:, :2] + p[:, 2:] - t[:, :2] - t[:, 2:]) / 2).square().sum(1) / around.square().sum(1)
    if kind == "diou":
        return iou - away
    (pw, ph), (tw, th) = (p[:, 2:] - p[:, :2]).T, (t[:, 2:] - t[:, :2]).T
    v = 4 / math.pi**2 * (torch.atan(tw / th) - torch.atan(pw / ph)).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v)
    return iou - away - alpha * v


@pytest.mark.parametrize("kind", OVERLAPS)
def test_value_and_gradient_are_torchs(kind: str) -> None:
    rng = np.random.default_rng(0)
    p, t = boxes(rng, 200), boxes(rng, 200)
    t[:20] = p[:20] + 100.0  # apart
    t[20:40, :2], t[20:40, 2:] = p[20:40, :2] - 1.0, p[20:40, 2:] + 2.0  # around
    given_p = torch.tensor(p, requires_grad=True)
    expected = torch_overlap(given_p, torch.tensor(t), kind)
    expected.sum().backward()
    value, gradient = overlap(p, t, kind)
    np.testing.assert_allclose(value, expected.detach().numpy(), atol=1e-12)
    assert given_p.grad is not None
    np.testing.assert_allclose(gradient, given_p.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_gradient_is_the_finite_difference(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, t, direction = boxes(rng, 1), boxes(rng, 1), rng.standard_normal((1, 4))
    edges = (p - t, p[:, :2] - t[:, 2:], p[:, 2:] - t[:, :2])
    if min(np.abs(x).min() for x in edges) < 1e-3:
        return  # at an edge that is shared there is none
    step = 1e-6
    slope = (overlap(p + step * direction, t, kind)[0] - overlap(p - step * direction, t, kind)[0]) / (2 * step)
    np.testing.assert_allclose((overlap(p, t, kind)[1] * direction).sum(1), slope, atol=1e-7)


def test_equal_boxes_overlap_wholly_and_no_kind_is_more() -> None:
    p = boxes(np.random.default_rng(1), 10)
    for kind in OVERLAPS:
        np.testing.assert_allclose(overlap(p, p, kind)[0], 1.0)
    with pytest.raises(ValueError, match="siou"):
        overlap(p, p, "siou")


def test_each_with_each() -> None:
    rng = np.random.default_rng(2)
    a, b = boxes(rng, 5), boxes(rng, 7)
    whole = np.arange(7) % 2 == 0
    found = overlaps(a, b, whole)
    for i in range(5):
        for j in range(7):
            value = overlap(a[i : i + 1], b[j : j + 1])[0][0]
            union = areas(a[i]) + areas(b[j])
            inner = value * union / (1 + value)
            assert found[i, j] == pytest.approx(inner / areas(a[i]) if whole[j] else value)
    np.testing.assert_allclose(corners(centres(a)), a)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_suppression_by_its_definition(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 30))
    given_boxes, scores = boxes(rng, count, 15.0), rng.integers(0, 8, count) / 8.0
    classes = rng.integers(0, 2, count)
    kept: list[int] = []
    for i in sorted(range(count), key=lambda i: (-scores[i], i)):
        better = [j for j in kept if classes[j] == classes[i]]
        if all(overlap(given_boxes[[i]], given_boxes[[j]])[0][0] <= threshold for j in better):
            kept.append(i)
    assert suppress(given_boxes, scores, classes, threshold).tolist() == kept
