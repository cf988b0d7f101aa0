"""Drawing on pictures of all sizes: what is drawn shows, what is not drawn stays."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL", reason="pictures are drawn with Pillow")

from edgelora.errors import DataError
from edgelora.media.contact_sheet import Row, contact_sheet, save_picture
from edgelora.media.drawing import COLOURS, LEAST_SIDE, Box, Figure, Point, colour, draw

NAMES = ("ground", "cat", "dog")


def grey(height, width, channels=3):
    return np.full((height, width, channels), 128, np.uint8)


def holds(picture, wanted) -> bool:
    return bool((picture == np.asarray(wanted, np.uint8)).all(-1).any())


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (28, 28), (200, 500), (700, 640)])
@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_and_points_show_at_every_size(size, channels):
    height, width = size
    figure = Figure(
        NAMES,
        boxes=(Box((0, 0, width * 0.6, height * 0.6), "cat", 0.91), Box((-5, -5, width + 9, height + 9), "dog")),
        points=(Point(width / 2, height / 2, "nose", 0.5),),
    )
    drawn = draw(grey(height, width, channels), figure)
    assert drawn.dtype == np.uint8
    assert min(drawn.shape[:2]) >= LEAST_SIDE or max(drawn.shape[:2]) == 1 << 12
    assert holds(drawn, colour("cat", NAMES))
    assert holds(drawn, colour("dog", NAMES))
    assert holds(drawn, colour("nose", NAMES))


def test_nothing_to_draw_leaves_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (400, 500, 3)).astype(np.uint8)
    np.testing.assert_array_equal(draw(picture, Figure()), picture)


def test_a_mask_tints_its_areas_and_names_them():
    mask = np.zeros((400, 400), np.int64)
    mask[100:300, 100:300] = 2
    mask[:50] = -1
    drawn = draw(grey(400, 400), Figure(NAMES, mask=mask))
    assert drawn.shape[0] > 400  # the legend
    assert (drawn[70, 50] == 128).all()
    assert (drawn[20, 50] == 128).all()
    inside = drawn[200, 200].astype(int)
    wanted = 128 * 0.55 + np.asarray(COLOURS[2]) * 0.45
    np.testing.assert_allclose(inside, wanted, atol=1)
    assert holds(drawn[:400], COLOURS[2])  # the edge
    assert holds(drawn[400:], COLOURS[2])  # the legend
    assert not holds(drawn[400:], COLOURS[1])  # no cat is there


@pytest.mark.parametrize("scale", [0.5, 1, 3])
def test_a_mask_of_another_size_covers_the_same_part(scale):
    mask = np.zeros((int(200 * scale), int(100 * scale)), np.int64)
    mask[: len(mask) // 2] = 1
    drawn = draw(grey(800, 400), Figure(NAMES, mask=mask))
    assert not (drawn[200, 200] == 128).all()
    assert (drawn[600, 200] == 128).all()


def test_names_do_not_cover_each_other():
    """Two points close together: the tags of both are whole."""
    one = Figure(("a", "b"), points=(Point(100, 100, "a"), Point(108, 100, "b")))
    drawn = draw(grey(400, 400), one)
    areas = [(drawn == np.asarray(colour(name, ("a", "b")), np.uint8)).all(-1).sum() for name in ("a", "b")]
    alone = [draw(grey(400, 400), Figure(("a", "b"), points=(p,))) for p in one.points]
    wanted = [
        (picture == np.asarray(colour(name, ("a", "b")), np.uint8)).all(-1).sum()
        for name, picture in zip(("a", "b"), alone, strict=True)
    ]
    assert areas[1] == wanted[1]
    assert areas[0] > 0.8 * wanted[0]  # the other point's disc lies on its own


def tag_height(picture, name) -> int:
    """The rows of the tag that names a box: where its colour is broad."""
    own = (picture == np.asarray(colour(name, NAMES), np.uint8)).all(-1).sum(1)
    return int((own > picture.shape[1] * 0.02).sum())


@pytest.mark.parametrize("shape", [(320, 480), (2000, 3000), (400, 1600)])
def test_letters_grow_with_the_picture(shape):
    drawn = draw(grey(*shape), Figure(NAMES, boxes=(Box((9, 90, shape[1] / 2, shape[0] / 2), "cat", 0.91),)))
    assert tag_height(drawn, "cat") >= 0.05 * shape[0]


@pytest.mark.parametrize("shape", [(1500, 2000), (400, 1600), (900, 300), (28, 28), (1, 2000)])
def test_what_is_drawn_for_a_sheet_has_letters_of_its_size(shape):
    """Not those of the picture, made smaller with it."""
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    mask[: height // 2] = 2
    box = Box((width * 0.1, height * 0.3, width * 0.9, height * 0.9), "cat", 0.91)
    drawn = draw(grey(*shape), Figure(NAMES, boxes=(box,), mask=mask), longest=320)
    factor = 320 / max(shape)
    h, w = max(1, round(height * factor)), max(1, round(width * factor))
    assert drawn.shape[1] == w
    assert drawn.shape[0] > h  # the legend
    if h >= 60 and w >= 90:
        assert tag_height(drawn[:h], "cat") >= 12
        assert holds(drawn[h - 1, : w // 3], (128, 128, 128))


def test_captions_of_any_length_and_script():
    for caption in ("cat 0.98", "a" * 500, "Ω≈ç√ кошка 猫", ""):
        drawn = draw(grey(320, 320), Figure(NAMES, caption))
        assert drawn.shape == (320 if not caption else drawn.shape[0], 320, 3)
        assert (drawn.shape[0] > 320) is bool(caption)
        assert (drawn[:320] == 128).all()


def test_colours_are_apart_and_follow_the_names():
    assert len({colour(name, [str(i) for i in range(7)]) for name in map(str, range(7))}) == 7
    assert colour("unknown", NAMES) == colour("unknown", ("other",))


def test_a_contact_sheet_holds_every_picture(tmp_path):
    rows = [
        Row(f"picture {i}", tuple(np.full((40 + 30 * i, 80, 3), 40 * i + 5 * j, np.uint8) for j in range(3)))
        for i in range(1, 4)
    ]
    sheet = contact_sheet(("truth", "before", "after"), rows, cell=100)
    for i in range(1, 4):
        for j in range(3):
            assert holds(sheet, [40 * i + 5 * j] * 3)
    save_picture(sheet, tmp_path / "new" / "sheet.png")
    from PIL import Image

    with Image.open(tmp_path / "new" / "sheet.png") as read:
        np.testing.assert_array_equal(np.asarray(read), sheet)


def test_a_sheet_keeps_what_fits_as_it_is():
    """Nothing is resized twice: letters stay sharp."""
    own = np.random.default_rng(0).integers(0, 256, (130, 100, 3)).astype(np.uint8)
    sheet = contact_sheet(("truth", "after"), [Row("a", (own, np.zeros((90, 300, 3), np.uint8)))], cell=100)
    corners = np.argwhere((sheet[:-130, :-100] == own[0, 0]).all(-1))
    assert any((sheet[y : y + 130, x : x + 100] == own).all() for y, x in corners)
    assert sheet.shape[1] == 224


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(DataError, match=r"sheet\.strange: the picture cannot be written"):
        save_picture(grey(8, 8), tmp_path / "sheet.strange")


@pytest.mark.parametrize("shape", [(1, 20_000), (9000, 1), (1, 1)])
def test_a_line_is_not_enlarged_without_bound(shape):
    figure = Figure(("a", "b"), "a line", (Box((0, 0, *shape[::-1]), "a"),), mask=np.ones(shape, np.uint8))
    made = draw(np.zeros((*shape, 3), np.uint8), figure)
    assert max(made.shape[:2]) <= max(*shape, 1 << 12) + 100
