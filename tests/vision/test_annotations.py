"""Annotations of boxes: what each format tells, and that whatever is wrong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.errors import DataError
from edgelora.vision.annotations import Box, read_boxes

pillow = pytest.importorskip("PIL.Image")

CAT, DOG = Box("cat", (2.0, 3.0, 12.0, 15.0)), Box("dog", (0.0, 0.0, 40.0, 30.0))


def picture(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    return path


def coco(folder: Path, **changes: object) -> Path:
    picture(folder / "images" / "a.png")
    picture(folder / "images" / "b.png")
    body: dict[str, object] = {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}, {"id": 9, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [2, 3, 10, 12]},
            {"image_id": 7, "category_id": 5, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(body | changes))
    return path


def yolo(folder: Path, lines: str = "0 0.175 0.3 0.25 0.4\n\n1 0.5 0.5 1 1\n") -> Path:
    picture(folder / "images" / "a.png")
    picture(folder / "images" / "b.png")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_text(lines)
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def voc(folder: Path, objects: str = "", head: str = "") -> Path:
    picture(folder / "JPEGImages" / "a.png")
    (folder / "Annotations").mkdir(exist_ok=True)
    objects = objects or (
        "<object><name>cat</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>12</xmax><ymax>15</ymax></bndbox></object>\n"
        "<object><name>dog</name><difficult>1</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>"
    )
    size = "<size><width>40</width><height>30</height></size>"
    (folder / "Annotations" / "a.xml").write_text(
        f"{head}<annotation>\n<filename>a.png</filename>{size}\n{objects}\n</annotation>"
    )
    return folder


def test_coco(tmp_path: Path) -> None:
    a, b = read_boxes(coco(tmp_path))
    assert a.path.name == "a.png" and a.boxes == (CAT, Box("dog", DOG.corners, ignored=True))
    assert a.labels == ("cat",) and b.path.name == "b.png" and b.boxes == ()


@pytest.mark.parametrize("named", [".", "../data", "absolute"])
@pytest.mark.parametrize("fmt", ["coco", "csv", "voc"])
def test_pictures_beside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: str, named: str) -> None:
    """Also where the person stands in that folder, and names what is in it alone."""
    picture(tmp_path / "images" / "a.png")
    folder = tmp_path / "data"
    folder.mkdir()
    if fmt == "csv":
        given = folder / "boxes.csv"
        given.write_text("filename,class,xmin,ymin,xmax,ymax\na.png,cat,2,3,12,15\n")
    elif fmt == "coco":
        given = coco(tmp_path).rename(folder / "boxes.json")
    else:
        given = folder
        shutil.move(voc(tmp_path) / "Annotations" / "a.xml", folder)
        shutil.rmtree(tmp_path / "JPEGImages")
    monkeypatch.chdir(folder)
    asked = given if named == "absolute" else Path(named) / given.relative_to(folder)
    assert [(s.path.name, s.labels) for s in read_boxes(asked)][:1] == [("a.png", ("cat",))]


def test_yolo(tmp_path: Path) -> None:
    a, b = read_boxes(yolo(tmp_path))
    assert [box.label for box in a.boxes] == ["cat", "dog"] and b.boxes == ()
    np.testing.assert_allclose([box.corners for box in a.boxes], [CAT.corners, DOG.corners])
    assert read_boxes(tmp_path / "images", "yolo") == [a, b]


@pytest.mark.parametrize(
    "names",
    [
        "names: [cat, 'dog']\nnc: 2\n",
        "nc: 2\nnames:\n  0: cat\n  1: dog\n",
        "names:\n- cat\n- dog\ntrain: x\n",
        "names: {0: cat, 1: dog}\n",
        "names:\n  1: dog\n  0: cat\n",
    ],
)
def test_yolos_names_in_yaml(tmp_path: Path, names: str) -> None:
    (yolo(tmp_path) / "classes.txt").unlink()
    (tmp_path / "data.yaml").write_text(names)
    assert read_boxes(tmp_path)[0].labels == ("cat", "dog")


def test_yolos_numbers_without_a_name(tmp_path: Path) -> None:
    (yolo(tmp_path) / "classes.txt").unlink()
    (tmp_path / "data.yaml").write_text("names:\n  1: cat\n  2: dog\n")
    with pytest.raises(DataError, match=r"data\.yaml: the names must have the numbers 0 to 1"):
        read_boxes(tmp_path)
    (tmp_path / "data.yaml").write_text("nc: 2\n")
    with pytest.raises(DataError, match="has no file of the classes' names"):
        read_boxes(tmp_path)


def test_pictures_of_one_name_and_hidden_files(tmp_path: Path) -> None:
    """Each picture is a sample, of what a camera or a computer leaves beside them none is."""
    folder = yolo(tmp_path / "yolo")
    (folder / "classes.txt").write_text("cat\ndog\n\n")
    shutil.copy(folder / "images" / "a.png", folder / "images" / "a.bmp")
    for name in ("images/._a.png", "labels/._a.txt"):
        (folder / name).write_bytes(b"\0")
    samples = read_boxes(folder)
    assert [s.path.name for s in samples] == ["a.bmp", "a.png", "b.png"]
    assert samples[0].boxes == samples[1].boxes and samples[0].boxes
    (voc(tmp_path / "voc") / "Annotations" / "._a.xml").write_bytes(b"\0")
    assert len(read_boxes(tmp_path / "voc")) == 1


def test_ids_that_occur_twice(tmp_path: Path) -> None:
    twice = [{"id": 7, "file_name": "a.png"}, {"id": 7, "file_name": "b.png"}]
    with pytest.raises(DataError, match=r"images\[1\]: the id 7 is that of another before"):
        read_boxes(coco(tmp_path, images=twice))
    with pytest.raises(DataError, match=r"categories\[1\]: the id 3 is that of another before"):
        read_boxes(coco(tmp_path, categories=[{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]))


def test_voc(tmp_path: Path) -> None:
    (a,) = read_boxes(voc(tmp_path))
    assert a.boxes == (CAT, Box("dog", DOG.corners, ignored=True))


def test_csv(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    path = tmp_path / "boxes.csv"
    path.write_text("filename,width,class,xmin,ymin,xmax,ymax\na.png,40,cat,2,3,12,15\na.png,40,dog,0,0,40,30\nb.png\n")
    a, b = read_boxes(path)
    assert a.boxes == (CAT, DOG) and b.boxes == ()


def test_a_changed_picture_is_changed_data(tmp_path: Path) -> None:
    sample = read_boxes(coco(tmp_path))[0]
    before = sample.record()
    json.dumps(before)
    assert read_boxes(coco(tmp_path))[0].record() == before
    pillow.fromarray(np.full((30, 40, 3), 9, np.uint8)).save(sample.path)
    assert sample.record() != before
    sample.path.unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        sample.record()


def test_a_box_that_ends_a_pixel_beyond_is_cut(tmp_path: Path) -> None:
    path = coco(tmp_path, annotations=[{"image_id": 7, "category_id": 3, "bbox": [-1, 0, 42, 30.5]}])
    assert read_boxes(path)[0].boxes[0].corners == (0.0, 0.0, 40.0, 30.0)


def annotation(**changes: object) -> dict[str, object]:
    return {"annotations": [{"image_id": 7, "category_id": 3, "bbox": [2, 3, 10, 12]} | changes]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (annotation(bbox=[2, 3, 100, 12]), r"annotations\[0\].*outside the picture.*40 × 30"),
        (annotation(bbox=[2, 3, -5, 12]), r"annotations\[0\].*no width or height"),
        (annotation(bbox=[2, 3, "x", 12]), r"annotations\[0\].*a number.*'x'"),
        (annotation(bbox=[2, 3]), r"annotations\[0\].*\[x, y, width, height\]"),
        (annotation(bbox=[2, 3, 1e400, 1]), r"annotations\[0\].*number"),
        (annotation(category_id=4), r"annotations\[0\].*no category has the id 4"),
        (annotation(image_id=1), r"annotations\[0\].*no image has the id 1"),
        ({"images": [{"id": 7, "file_name": "none.png"}], "annotations": []}, r"images\[0\].*none\.png.*missing"),
        ({"images": [{"id": 7, "file_name": "a.png", "width": 4, "height": 30}]}, r"images\[0\].*4 × 30.*40 × 30"),
        ({"images": [{"file_name": "a.png"}]}, r"images\[0\].*'id'"),
        ({"images": {}}, r"no list 'images'"),
        ({"images": [], "annotations": []}, "no pictures"),
        ({"categories": [{"id": 3, "name": " "}]}, r"categories\[0\]"),
    ],
)
def test_cocos_mistakes_are_named(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    path = coco(tmp_path, **changes)
    with pytest.raises(DataError, match=told) as error:
        read_boxes(path)
    assert "boxes.json" in str(error.value)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("0 0.5 0.5 0.5 0.5\n2 0.5 0.5 1 1", r"a\.txt, line 2.*no class 2.*cat, dog"),
        ("0 0.5 0.5 0.5", r"a\.txt, line 1.*4 fields"),
        ("0 0.5 0.5 0.5 nan", r"line 1.*a number"),
        ("0 0.5 0.5 0.5 -0.5", r"line 1.*above 0"),
        ("0 0.9 0.5 0.5 0.5", r"line 1.*outside the picture"),
        ("cat 0.5 0.5 0.5 0.5", r"line 1.*whole number.*'cat'"),
    ],
)
def test_yolos_mistakes_are_named(tmp_path: Path, lines: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_boxes(yolo(tmp_path, lines))


def box_xml(x1: object = 3, y1: object = 4, x2: object = 12, y2: object = 15, name: str = "cat") -> str:
    bounds = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name><bndbox>{bounds}</bndbox></object>"


@pytest.mark.parametrize(
    ("objects", "head", "told"),
    [
        (box_xml(x2=90), "", r"a\.xml, line 3.*outside the picture"),
        (box_xml(x2=1), "", r"line 3.*no width or height"),
        (box_xml(y1="x"), "", r"line 3.*<ymin>.*number"),
        (box_xml(name=""), "", r"line 3.*<name>"),
        ("<object><name>cat</name></object>", "", r"line 3.*no <bndbox>"),
        ("<object>", "", r"a\.xml.*not XML"),
        (box_xml(), '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>', "document type definition"),
        (box_xml(), '<!DOCTYPE annotation SYSTEM "a.dtd">', "document type definition"),
    ],
)
def test_vocs_mistakes_are_named(tmp_path: Path, objects: str, head: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_boxes(voc(tmp_path, objects, head))


def test_missing_and_broken_pictures_are_named(tmp_path: Path) -> None:
    (voc(tmp_path / "v") / "JPEGImages" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png"):
        read_boxes(tmp_path / "v")
    (tmp_path / "v" / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png.*missing"):
        read_boxes(tmp_path / "v")
    (yolo(tmp_path / "y") / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.txt.*no picture"):
        read_boxes(tmp_path / "y")


def test_the_first_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    path = coco(tmp_path, annotations=[{"image_id": 7, "category_id": 3, "bbox": [2, 3, -1, 1]}] * 12)
    with pytest.raises(DataError) as error:
        read_boxes(path)
    assert str(error.value).count("no width or height") == 5 and "and 7 more problems" in str(error.value)


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    for path, told in [(tmp_path / "none", "does not exist"), (tmp_path, "names"), (tmp_path / "x.bin", "COCO")]:
        if path.suffix:
            path.touch()
        with pytest.raises(DataError, match=told):
            read_boxes(path)
    with pytest.raises(DataError, match="format 'tar'"):
        read_boxes(tmp_path, "tar")
    with pytest.raises(DataError, match="coco is a file"):
        read_boxes(tmp_path, "coco")


MARKS = (b"<", b">", b"&x;", b'"', b"[", b"{", b"-1", b"1e999", b"\xff", b"\0", b"null", b"\n", b",")


def _damage(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes changed, left out, put in or doubled, with marks that the formats know among them."""
    made = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(made) + 1))
        piece = MARKS[int(rng.integers(len(MARKS)))]
        match int(rng.integers(0, 4)):
            case 0:
                made[at : at + 1] = piece
            case 1:
                made[at:at] = piece
            case 2:
                del made[at : at + int(rng.integers(1, 20))]
            case _:
                made[at:at] = made[at : at + int(rng.integers(1, 30))]
    return bytes(made)


@pytest.mark.parametrize("fmt", ["coco", "csv", "voc", "yolo"])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_annotations_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, fmt: str, seed: int) -> None:
    folder = tmp_path_factory.getbasetemp() / f"damaged-{fmt}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if fmt == "coco":
        path = file = coco(folder)
    elif fmt == "csv":
        picture(folder / "images" / "a.png")
        path = file = folder / "boxes.csv"
        file.write_text("image,label,xmin,ymin,xmax,ymax\na.png,cat,2,3,12,15\na.png,dog,0,0,40,30\n")
    elif fmt == "voc":
        path, file = voc(folder), folder / "Annotations" / "a.xml"
    else:
        path, file = yolo(folder), folder / "labels" / "a.txt"
    file.write_bytes(_damage(np.random.default_rng(seed), file.read_bytes()))
    try:
        samples = read_boxes(path)
    except DataError as error:
        assert str(folder) in str(error)
    else:
        for sample in samples:
            json.dumps(sample.record()).encode()
            for box in sample.boxes:
                x1, y1, x2, y2 = box.corners
                assert box.label and 0 <= x1 < x2 <= 40 and 0 <= y1 < y2 <= 30
