"""Families of detectors: what maps mean, which candidates answer for which object, and the gradient of the loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.vision.average_precision import Truth
from edgelora.vision.boxes import corners, overlaps
from edgelora.vision.detectors import Detector, FastestDet, Yolo, Yolox
from edgelora.vision.detectors.cells import NOTHING, Predictions, cells_of, maps_of, rows_of

ANCHORS = (((10.0, 13.0), (33.0, 23.0)), ((30.0, 61.0), (62.0, 45.0)))
SIZE = (64, 96)  # height and width


class SmoothFastestDet(FastestDet):
    measure = "diou"  # CIoU's α counts as a constant, which finite differences do not know


class SmoothYolo(Yolo):
    measure = "diou"


DETECTORS = {
    "grid": Detector(SmoothFastestDet()),
    "fastestdet": Detector(SmoothFastestDet(activated=True)),
    "yolox": Detector(Yolox()),
    "yolo": Detector(SmoothYolo(), ANCHORS),
}


def maps_for(name: str, rng: np.random.Generator, batch: int = 3, classes: int = 4) -> list[np.ndarray]:
    per_cell = 2 if name == "yolo" else 1
    shapes = [(4, 6)] if name in ("grid", "fastestdet") else [(8, 12), (4, 6)]
    maps = [rng.standard_normal((batch, per_cell * (5 + classes), *shape)) for shape in shapes]
    if name == "fastestdet":  # ends in probabilities
        maps[0][:, 0] = rng.uniform(0.05, 0.95, maps[0][:, 0].shape)
        p = rng.uniform(0.1, 1.0, maps[0][:, 5:].shape)
        maps[0][:, 5:] = p / p.sum(1, keepdims=True)
    return maps


def truth(rng: np.random.Generator, count: int, classes: int = 4) -> Truth:
    low = rng.uniform(0, [SIZE[1] - 20, SIZE[0] - 20], (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(6, 20, (count, 2))], axis=1)
    return Truth(boxes, rng.integers(0, classes, count), np.zeros(count, np.bool_))


@pytest.mark.parametrize("name", DETECTORS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_gradient_is_the_finite_difference(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    detector, (said, *_) = DETECTORS[name], DETECTORS[name]._said(maps_for(name, rng))
    cells = cells_of(maps_for(name, rng), SIZE, detector.anchors)
    boxes = corners(detector.family.code(said.raw, cells)[0])
    positives = detector.family.assign(said, boxes, cells, truth(rng, 3))
    _, slope = detector.picture_loss(said, cells, positives)
    along = Predictions(*(rng.standard_normal(x.shape) for x in (said.raw, said.objectness, said.classes)))
    step = 1e-6

    def loss(t: float) -> float:
        pairs = zip(vars(said).values(), vars(along).values(), strict=True)
        return detector.picture_loss(Predictions(*(x + t * d for x, d in pairs)), cells, positives)[0]

    expected = sum(float((g * d).sum()) for g, d in zip(vars(slope).values(), vars(along).values(), strict=True))
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_batchs_gradient_is_its_pictures(name: str) -> None:
    rng = np.random.default_rng(3)
    maps, detector = maps_for(name, rng), DETECTORS[name]
    truths = [truth(rng, 2), truth(rng, 0), truth(rng, 4)]
    total, gradients = detector.loss(maps, SIZE, truths)
    assert [g.shape for g in gradients] == [m.shape for m in maps]
    alone = [detector.loss([m[i : i + 1] for m in maps], SIZE, truths[i : i + 1]) for i in range(3)]
    assert total == pytest.approx(sum(loss for loss, _ in alone))
    for level, gradient in enumerate(gradients):
        np.testing.assert_allclose(gradient, np.concatenate([made[level] for _, made in alone]), atol=1e-12)
    assert any(np.abs(g[1]).max() > 0 for g in gradients), "a picture of nothing teaches that nothing is there"


@pytest.mark.parametrize("name", ["grid", "yolox", "yolo"])
def test_descent_on_the_maps_finds_the_objects(name: str) -> None:
    rng = np.random.default_rng(5)
    detector = Detector(FastestDet()) if name == "grid" else DETECTORS[name]
    maps = [0.1 * m for m in maps_for(name, rng, batch=2)]
    boxes = np.array([[4.0, 6, 30, 30], [50.0, 20, 84, 52]])
    truths = [Truth(boxes, np.array([1, 3]), np.zeros(2, np.bool_)), Truth(boxes[:1], np.array([2]), np.zeros(1, bool))]
    m = [np.zeros_like(x) for x in maps]
    v = [np.zeros_like(x) for x in maps]
    first = detector.loss(maps, SIZE, truths)[0]
    for t in range(1, 401):
        _, gradients = detector.loss(maps, SIZE, truths)
        for x, g, a, b in zip(maps, gradients, m, v, strict=True):
            a[...] = 0.9 * a + 0.1 * g
            b[...] = 0.99 * b + 0.01 * g**2
            x -= 0.05 * (a / (1 - 0.9**t)) / (np.sqrt(b / (1 - 0.99**t)) + 1e-9)
    assert detector.loss(maps, SIZE, truths)[0] < 0.3 * first
    for found, expected in zip(detector.find(maps, SIZE, score=0.4), truths, strict=True):
        meet = overlaps(expected.boxes, found.boxes)
        assert (meet.max(1) > 0.8).all()
        assert (found.classes[meet.argmax(1)] == expected.classes).all()
        assert len(found.boxes) == len(expected.boxes), "doubles are suppressed, and nothing else is seen"


def test_fastestdets_maps_cell_by_cell() -> None:
    rng = np.random.default_rng(7)
    one = maps_for("fastestdet", rng, batch=2)[0]
    found = DETECTORS["fastestdet"].find([one], SIZE, score=0.2, doubles=1.0, most=1000)
    for picture, made in zip(one, found, strict=True):
        expected = []
        for row in range(4):
            for column in range(6):
                p = picture[:, row, column]
                score, label = p[0] * p[5:].max(), p[5:].argmax()
                if score < 0.2:
                    continue
                x, y = (np.tanh(p[1]) + column) / 6 * 96, (np.tanh(p[2]) + row) / 4 * 64
                w, h = 96 / (1 + np.exp(-p[3])), 64 / (1 + np.exp(-p[4]))
                expected.append((score, label, x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        expected.sort(key=lambda one: -one[0])
        assert len(made.scores) == len(expected) > 0
        np.testing.assert_allclose(made.scores, [one[0] for one in expected])
        np.testing.assert_array_equal(made.classes, [one[1] for one in expected])
        np.testing.assert_allclose(made.boxes, [one[2:] for one in expected])


def test_yolos_maps_anchor_by_anchor() -> None:
    rng = np.random.default_rng(8)
    maps = maps_for("yolo", rng, batch=1)
    cells = cells_of(maps, SIZE, ANCHORS)
    boxes = DETECTORS["yolo"].family.code(rows_of(maps, 2)[0][:, :4], cells)[0]
    for level, stride in enumerate((8, 16)):
        n, _, height, width = maps[level].shape
        spread = maps[level].reshape(n, 2, 9, height, width).transpose(0, 1, 3, 4, 2)
        for anchor, row, column in np.ndindex(2, height, width):
            p = 1 / (1 + np.exp(-spread[0, anchor, row, column, :4]))
            place = (2 * p[:2] - 0.5 + [column, row]) * stride
            number = cells.first(level) + (row * width + column) * 2 + anchor
            np.testing.assert_allclose(boxes[number], [*place, *((2 * p[2:]) ** 2 * ANCHORS[level][anchor])])


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_and_maps_are_the_same(name: str) -> None:
    maps = maps_for(name, np.random.default_rng(9))
    per_cell = 2 if name == "yolo" else 1
    for back, given_map in zip(maps_of(rows_of(maps, per_cell), maps, per_cell), maps, strict=True):
        np.testing.assert_array_equal(back, given_map)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_an_object_has_candidates_and_a_candidate_one_object(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    shown = truth(rng, count)
    for name, detector in DETECTORS.items():
        maps = maps_for(name, rng, batch=1)
        (said,), cells = detector._said(maps), cells_of(maps, SIZE, detector.anchors)
        boxes = corners(detector.family.code(said.raw, cells)[0])
        positives = detector.family.assign(said, boxes, cells, shown)
        assert len(positives.candidate) and positives.candidate.max() < len(cells)
        stride = cells.stride[positives.candidate]
        away = np.abs((cells.place[positives.candidate] + 0.5) * stride - _middle(positives.box))
        reach = 2.5 if name == "yolox" else 1.5
        assert (away <= np.maximum(reach * stride, 11.0)).all()
        if name == "yolox":
            assert len(set(positives.candidate.tolist())) == len(positives.candidate)


def _middle(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def test_ignored_boxes_teach_nothing() -> None:
    rng = np.random.default_rng(11)
    maps, shown = maps_for("grid", rng, batch=1), truth(rng, 2)
    hidden = Truth(shown.boxes, shown.classes, np.ones(2, np.bool_))
    loss, _ = DETECTORS["grid"].loss(maps, SIZE, [hidden])
    (said,), cells = DETECTORS["grid"]._said(maps), cells_of(maps, SIZE)
    assert loss == DETECTORS["grid"].picture_loss(said, cells, NOTHING)[0]
