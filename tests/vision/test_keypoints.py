"""Heatmaps there and back; PCK and OKS against direct transcriptions of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgelora.vision.keypoints import COCO_SIGMAS, decode, distances, gaussian_maps, oks, pck, sides, sigmas_of

HEIGHT, WIDTH = 17, 23


@given(x=st.floats(1.5, WIDTH - 1.5), y=st.floats(1.5, HEIGHT - 1.5), sigma=st.floats(0.8, 3.0))
def test_a_gaussian_is_decoded_between_places(x, y, sigma):
    maps = gaussian_maps(np.array([[[x, y], [y / 2 + 1, x / 2]]]), HEIGHT, WIDTH, sigma)
    assert maps.shape == (1, 2, HEIGHT, WIDTH)
    np.testing.assert_allclose(maps.sum((2, 3)), 1, rtol=1e-5)
    points, scores = decode(np.log(np.maximum(maps.astype(np.float64), 1e-300)))
    assert points.shape == (1, 2, 2)
    np.testing.assert_allclose(points[0, 0], [x, y], atol=1e-3)
    assert 0 < scores[0, 0] <= 1


@given(x=st.floats(-30, 60), y=st.floats(-30, 60))
def test_points_anywhere_make_distributions(x, y):
    maps = gaussian_maps(np.array([x, y]), HEIGHT, WIDTH, 1.0)
    assert np.isfinite(maps).all()
    assert math.isclose(float(maps.sum()), 1, rel_tol=1e-5)
    row, column = np.unravel_index(maps.argmax(), maps.shape)
    assert abs(column + 0.5 - min(max(x, 0), WIDTH)) <= 0.5 + 1e-6
    assert abs(row + 0.5 - min(max(y, 0), HEIGHT)) <= 0.5 + 1e-6


@pytest.mark.parametrize("at", [(0, 0), (HEIGHT - 1, WIDTH - 1), (0, 5), (6, WIDTH - 1)])
def test_a_peak_at_the_border_is_at_the_middle_of_its_place(at):
    maps = np.zeros((HEIGHT, WIDTH))
    maps[at] = 9.0
    points, scores = decode(maps)
    np.testing.assert_allclose(points, [at[1] + 0.5, at[0] + 0.5])
    assert scores > 0.9


def test_a_flat_map_has_a_point_of_a_low_score():
    points, scores = decode(np.zeros((2, 3, 8, 8)))
    assert np.isfinite(points).all()
    assert (scores < 0.5).all()


points_of = arrays(np.float64, (4, 3, 2), elements=st.floats(0, 100))


@given(truth=points_of, predicted=points_of, visible=arrays(np.bool_, (4, 3)), share=st.floats(0.05, 0.9))
def test_pck_and_sides_as_defined(truth, predicted, visible, share):
    around = sides(truth, visible)
    lengths = around.max(1)
    hits = []
    for n in range(4):
        seen = [truth[n, k] for k in range(3) if visible[n, k]]
        if not seen:
            assert np.isnan(lengths[n])
            continue
        xs, ys = zip(*seen, strict=True)
        assert around[n].tolist() == [max(xs) - min(xs), max(ys) - min(ys)]
        gaps = distances(predicted, truth)[n]
        for k in range(3):
            assert np.isclose(gaps[k], math.dist(predicted[n, k], truth[n, k]))
        hits += [gaps[k] <= share * lengths[n] for k in range(3) if visible[n, k]]
    found = pck(predicted, truth, visible, lengths, share)
    assert np.isclose(found, np.mean(hits)) if hits else np.isnan(found)


@given(truth=points_of, predicted=points_of, visible=arrays(np.bool_, (4, 3)))
def test_oks_as_coco_evaluates_it(truth, predicted, visible):
    areas, sigmas = np.array([900.0, 2500.0, 100.0, 4e4]), np.array([0.026, 0.079, 0.107])
    found = oks(predicted, truth, visible, areas, sigmas)
    for n in range(4):
        # pycocotools' computeOks, for visible points: e = (dx² + dy²)/vars/(area + eps)/2, vars = (2·sigma)²
        e = [
            ((predicted[n, k] - truth[n, k]) ** 2).sum() / (sigmas[k] * 2) ** 2 / (areas[n] + np.spacing(1)) / 2
            for k in range(3)
            if visible[n, k]
        ]
        wanted = sum(math.exp(-one) for one in e) / len(e) if e else math.nan
        assert np.isclose(found[n], wanted, equal_nan=True)


def test_spreads_are_cocos_where_all_points_are_of_its_persons():
    order = ("nose", "eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    names = [name for part in order for name in ([part] if part == "nose" else [f"left_{part}", f"right_{part}"])]
    kpt_oks_sigmas = [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]  # pycocotools, in 1/1000
    np.testing.assert_allclose(sigmas_of(names), np.array(kpt_oks_sigmas) / 1000)
    assert set(names) == set(COCO_SIGMAS)
    np.testing.assert_allclose(sigmas_of(["nose", "tail"]), np.mean(kpt_oks_sigmas) / 1000)
