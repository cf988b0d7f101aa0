"""Readers of masks: kinds of masks, names of classes, and what is wrong by file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgelora.errors import DataError
from edgelora.vision.mask_files import read_mask, read_masks
from edgelora.vision.masks import IGNORED

Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    (image if mode is None else image.convert(mode)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two pictures of 4 × 6 with masks of the values 0 and 255."""
    for name in ("a", "b"):
        save(tmp_path / "images" / f"{name}.png", np.zeros((4, 6, 3)))
    save(tmp_path / "masks" / "a.png", [[0, 255] * 3] * 4)
    save(tmp_path / "masks" / "b.png", [[0] * 6] * 4)
    return tmp_path


def contents(path):
    return [one.content for one in read_masks(path)]


def test_a_folder_of_black_and_white_masks(folder):
    first, second = contents(folder)
    assert (first.path.name, first.mask.name) == ("a.png", "a.png")
    assert first.labels == ("0", "255")
    assert second.labels == ("0",)
    np.testing.assert_array_equal(first.classes({"0": 0, "255": 1}), [[0, 1] * 3] * 4)
    assert first.values == ((0, 12), (255, 12))
    record = first.record()
    save(folder / "masks" / "a.png", [[255, 255] * 3] * 4)
    assert contents(folder)[0].record() != record
    json.dumps(record)


def test_class_numbers_with_255_for_nothing(folder):
    save(folder / "masks" / "b.png", [[0, 1, 2, 255, 2, 1]] * 4)
    _, second = contents(folder)
    assert second.labels == ("0", "1", "2")
    np.testing.assert_array_equal(second.classes({"0": 2, "1": 1, "2": 0})[0], [2, 1, 0, IGNORED, 0, 1])


def test_a_palette_and_one_bit(folder):
    image = Image.fromarray(np.asarray([[0, 1, 2, 2, 1, 0]] * 4, np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(folder / "masks" / "a.png")
    save(folder / "masks" / "b.png", [[0, 255, 0, 255, 0, 255]] * 4, "1")
    first, second = contents(folder)
    assert first.labels == ("0", "1", "2")
    assert second.labels == ("0", "1")


def test_names_of_classes(folder):
    (folder / "classes.txt").write_text("membrane\ncell\n", encoding="utf-8")
    first, second = contents(folder)
    assert first.labels == ("membrane", "cell")
    assert second.labels == ("membrane",)
    for names in ("membrane\n", "membrane\ncell\nwall\n"):  # not two: 255 counts for nothing
        (folder / "classes.txt").write_text(names, encoding="utf-8")
        assert [one.labels for one in contents(folder)] == [("membrane",), ("membrane",)]
    save(folder / "masks" / "b.png", [[0, 1] * 3] * 4)
    (folder / "classes.txt").write_text("membrane\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.txt: has no name for the values 1"):
        read_masks(folder)
    (folder / "classes.txt").write_text("one\none\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.txt: names one twice; it takes a line for each class"):
        read_masks(folder)


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_records_of_pairs(name, folder):
    rows = [("images/a.png", "masks/a.png"), ("images/b.png", "masks/b.png")]
    csv = "image,mask\n" + "".join(f"{a},{b}\n" for a, b in rows)
    jsonl = "".join(json.dumps({"image": a, "mask": b, "adapter": "x"}) + "\n" for a, b in rows)
    (folder / name).write_text(csv if name.endswith("csv") else jsonl, encoding="utf-8")
    found = read_masks(folder / name)
    assert [one.content.mask.name for one in found] == ["a.png", "b.png"]
    assert {one.adapter for one in found} == {None if name.endswith("csv") else "x"}
    (folder / name).write_text(csv.replace("masks/b", "masks/c") if name.endswith("csv") else jsonl[:-9])
    with pytest.raises(DataError, match=r"line [23]: "):
        read_masks(folder / name)


def test_what_is_wrong_is_named(folder):
    (folder / "images" / "c.png").touch()
    with pytest.raises(DataError, match=r"c\.png: there is no mask .*masks.c\.png"):
        read_masks(folder)
    Image.new("L", (6, 4)).save(folder / "masks" / "c.jpg")
    with pytest.raises(DataError, match=r"c\.png: its mask c\.jpg is a JPEG, which blurs classes; save it as PNG"):
        read_masks(folder)
    (folder / "masks" / "c.jpg").unlink()
    save(folder / "masks" / "c.png", np.zeros((4, 6, 3)))
    with pytest.raises(DataError, match=r"masks.c\.png: a mask has one channel.*this one is RGB"):
        read_masks(folder)
    (folder / "masks" / "c.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"masks.c\.png: not a picture that can be read"):
        read_masks(folder)
    save(folder / "masks" / "c.png", np.arange(200).reshape(10, 20))
    with pytest.raises(DataError, match="look like grey levels"):
        read_masks(folder)
    for file in (folder / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="holds no pictures"):
        read_masks(folder)
    with pytest.raises(DataError, match="expected are two folders in it"):
        read_masks(folder / "images")


def test_what_is_beside_the_masks(folder):
    """Hidden files are none of the data; of two masks for a picture it is not known which is right."""
    for name in ("images/._a.png", "masks/._a.png"):
        (folder / name).write_bytes(b"\0")
    assert len(contents(folder)) == 2
    save(folder / "masks" / "a.bmp", [[0, 255] * 3] * 4)
    with pytest.raises(DataError, match=r"a\.bmp and a\.png are masks of the same name"):
        read_masks(folder)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "../" * 2000])
def test_names_that_no_file_has(folder, name):
    (folder / "data.jsonl").write_text(json.dumps({"image": name, "mask": "masks/a.png"}), encoding="utf-8")
    with pytest.raises(DataError, match="line 1: there is no picture"):
        read_masks(folder / "data.jsonl")
    (folder / "data.jsonl").write_text(json.dumps({"image": "images/a.png", "mask": name}), encoding="utf-8")
    with pytest.raises(DataError, match="line 1: "):
        read_masks(folder / "data.jsonl")


def test_a_mask_is_a_picture_not_a_program(folder):
    """Pillow would hand PostScript to an interpreter."""
    (folder / "masks" / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n")
    with pytest.raises(DataError, match=r"b\.png: not a picture that can be read"):
        read_masks(folder)


def test_wide_values(folder):
    Image.fromarray(np.full((4, 6), 300, np.uint16)).save(folder / "masks" / "b.png")
    with pytest.raises(DataError, match="values up to 300"):
        read_mask(folder / "masks" / "b.png")
