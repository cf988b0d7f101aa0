"""The equal error rate against what is known of it; the contrastive loss of speakers against its definition."""

from __future__ import annotations

from math import erf, isnan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.inputs import ArrayInputs
from edgelora.reference_losses import REFERENCES
from edgelora.verification import SameSpeaker, equal_error_rate


def test_two_normal_distributions():
    """Means d apart with spread 1: the rates are equal in the middle, at Φ(−d/2)."""
    rng = np.random.default_rng(0)
    for d in (0.5, 1.0, 2.0, 3.0):
        scores = np.concatenate([rng.standard_normal(200_000) + d, rng.standard_normal(100_000)])
        rate, threshold = equal_error_rate(scores, np.arange(300_000) < 200_000)
        assert rate == pytest.approx(0.5 * (1 + erf(-d / 2 / sqrt(2))), abs=3e-3)
        assert threshold == pytest.approx(d / 2, abs=0.03)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_every_threshold_is_tried(pairs: list[tuple[int, bool]]):
    scores = np.asarray([float(score) for score, _ in pairs])
    same = np.asarray([own for _, own in pairs])
    rate, threshold = equal_error_rate(scores, same)
    if same.all() or not same.any():
        assert isnan(rate)
        return
    tried = [(float((scores[~same] >= t).mean()), float((scores[same] < t).mean())) for t in range(-5, 7)]
    assert min(max(a, r) for a, r in tried) >= rate - 1e-12
    assert max(min(a, r) for a, r in tried) <= rate + 1e-12
    accepted, refused = float((scores[~same] >= threshold).mean()), float((scores[same] < threshold).mean())
    assert (accepted, refused) in tried or threshold in scores


def test_extremes():
    assert equal_error_rate(np.array([0.9, 0.8, 0.1]), np.array([True, True, False])) == (0.0, 0.8)
    assert equal_error_rate(np.array([0.1, 0.8, 0.9]), np.array([True, False, False]))[0] == 1.0
    assert equal_error_rate(np.zeros(4), np.array([True, False, True, False]))[0] == 0.5


def objective(speakers: list[int]) -> SameSpeaker:
    data = ArrayInputs({"x": np.zeros((len(speakers), 1), np.float32)})
    return SameSpeaker(data, np.asarray(speakers), 0.1)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9), st.integers(0, 1000))
def test_the_graphs_loss_is_the_definitions(speakers: list[int], seed: int):
    """Over all sounds in one batch: the feeds give the loss that the metrics tell, and that of the paper's sum."""
    rng = np.random.default_rng(seed)
    e = rng.standard_normal((len(speakers), 5))
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    one, rows = objective(speakers), np.arange(len(speakers))
    loss = REFERENCES["contrastive"](e, one.feeds(rows, one.weight(rows)))[0]
    terms = []
    for i in rows:
        positives = [j for j in rows if j != i and speakers[j] == speakers[i]]
        negatives = [np.exp(e[i] @ e[k] / 0.1) for k in rows if speakers[k] != speakers[i]]
        nll = [-np.log(np.exp(e[i] @ e[j] / 0.1) / (np.exp(e[i] @ e[j] / 0.1) + sum(negatives))) for j in positives]
        terms += [np.mean(nll)] if nll else []
    assert loss == pytest.approx(np.mean(terms) if terms else 0.0, rel=1e-5, abs=1e-6)
    if terms:
        assert one.metrics([e], [rows])["loss"] == pytest.approx(np.mean(terms), rel=1e-5, abs=1e-9)
