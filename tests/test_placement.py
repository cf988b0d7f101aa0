"""Where a picture lies: points and boxes go forth and back, and pixels follow them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.media.augmentation import IMAGE_KINDS, Augmentation
from edgelora.media.placement import FITS, Placement

sides = st.integers(1, 400)
placements = st.builds(
    lambda source, size, fit, share, kinds, epoch: (
        Augmentation(kinds, 3).variation(epoch, 5).place(Placement.fitted(source, size, fit, share))
    ),
    st.tuples(sides, sides),
    st.tuples(sides, sides),
    st.sampled_from(FITS),
    st.floats(0.5, 1.0),
    st.sets(st.sampled_from(IMAGE_KINDS)).map(tuple),
    st.integers(0, 50),
)


@given(placements, st.lists(st.tuples(st.floats(-50, 450), st.floats(-50, 450)), min_size=1, max_size=5))
def test_points_come_back(placement: Placement, given_points: list[tuple[float, float]]):
    points = np.asarray(given_points)
    np.testing.assert_allclose(placement.points_back(placement.points(points)), points, atol=1e-6)
    np.testing.assert_allclose(placement.points(placement.points_back(points)), points, atol=1e-6)


@given(placements, st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100), st.floats(0, 100)))
def test_boxes_come_back_with_their_corners_in_order(placement: Placement, drawn: tuple[float, ...]):
    left, top, width, height = drawn
    box = np.array([[left, top, left + width, top + height]])
    made = placement.boxes(box)
    assert (made[:, :2] <= made[:, 2:]).all()
    np.testing.assert_allclose(placement.boxes_back(made), box, atol=1e-6)
    area = np.prod(made[:, 2:] - made[:, :2]) / abs(placement.scale[0] * placement.scale[1])
    assert area == pytest.approx(width * height, rel=1e-6, abs=1e-6)


def test_no_boxes_are_none():
    assert Placement.fitted((4, 6), (8, 8), "letterbox").boxes(np.zeros((0, 4))).shape == (0, 4)


@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_fits_are_what_they_are_called(source: tuple[int, int], size: tuple[int, int]):
    whole = np.array([[0, 0, source[1], source[0]]])
    (stretched,) = Placement.fitted(source, size, "stretch").boxes(whole)
    np.testing.assert_allclose(stretched, [0, 0, size[1], size[0]], atol=1e-6)
    ((left, top, right, bottom),) = Placement.fitted(source, size, "crop").boxes(whole)
    assert left <= 1e-6 and top <= 1e-6 and right >= size[1] - 1e-6 and bottom >= size[0] - 1e-6
    assert min(right - left - size[1], bottom - top - size[0]) == pytest.approx(0, abs=1e-6)
    ((left, top, right, bottom),) = Placement.fitted(source, size, "letterbox").boxes(whole)
    assert left >= 0 and top >= 0 and right <= size[1] + 1e-6 and bottom <= size[0] + 1e-6
    assert min(size[1] - (right - left), size[0] - (bottom - top)) == pytest.approx(0, abs=1e-6)


def ramp(height: int, width: int) -> np.ndarray:
    """A picture whose first channel is x and whose second is y, as shares of 250."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return np.stack([250 * x / width, 250 * y / height, np.zeros_like(x)], -1).round().astype(np.uint8)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kinds", [(), ("flip",), ("crop",), ("flip", "crop")], ids="-".join)
@pytest.mark.parametrize("reduced", [1, 3])
def test_pixels_go_where_points_go(fit: str, kinds: tuple[str, ...], reduced: int):
    """Of a ramp every pixel tells where it came from: that is where the map says, and the border is the filling."""
    source, size = (240, 330), (64, 48)
    for epoch in range(6):
        placement = Placement.fitted(source, size, fit)
        placement = Augmentation(kinds, 0).variation(epoch, 0).place(placement)
        made = placement.warp(ramp(source[0] // reduced, source[1] // reduced), fill=255)
        y, x = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
        came = placement.points_back(np.stack([x, y], -1))
        wanted = 250 * came / (source[1], source[0])
        step = max(250 / (abs(placement.scale[i]) * (source[1], source[0])[i]) for i in range(2))
        inside = ((wanted > step) & (wanted < 250 - step)).all(-1)
        outside = ((wanted < -step) | (wanted > 250 + step)).any(-1)
        assert inside.any()
        np.testing.assert_allclose(made[inside][:, :2], wanted[inside], atol=1.6)
        assert (made[outside] == 255).all()


def test_a_mask_keeps_its_values():
    mask = np.random.default_rng(0).choice(np.array([0, 7, 200], np.uint8), (50, 70))
    made = Placement.fitted((50, 70), (64, 64), "letterbox").warp(mask, fill=255, resample="nearest")
    assert made.shape == (64, 64) and set(np.unique(made)) == {0, 7, 200, 255}
    grey = Placement.fitted((50, 70), (50, 70), "stretch").flipped().warp(mask[..., None])
    np.testing.assert_array_equal(grey[..., 0], mask[:, ::-1])


def test_variations_depend_on_seed_epoch_and_number_alone():
    one = Augmentation(("flip", "crop", "color"), 1)
    drawn = [one.variation(epoch, number) for epoch in range(4) for number in range(4)]
    assert drawn == [one.variation(epoch, number) for epoch in range(4) for number in range(4)]
    assert len({(v.zoom, v.shift, v.contrast) for v in drawn}) == 16
    assert Augmentation(("flip", "crop", "color"), 2).variation(0, 0) != drawn[0]
    alone = [Augmentation(("color",), 1).variation(e, n) for e in range(4) for n in range(4)]
    assert [v.contrast for v in alone] == [v.contrast for v in drawn]
    assert {v.flip for v in drawn} == {True, False} and not any(v.flip for v in alone)
    assert Augmentation(("flip", "crop"), 0).variation(0, 0).recolor(ramp(3, 3)) is not None
    bright = one.variation(0, 0).recolor(np.arange(256, dtype=np.uint8))
    assert (np.diff(bright.astype(int)) >= 0).all()
