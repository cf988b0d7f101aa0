"""Labelled pictures in folders and files of records: what is read, and what is said of what is wrong."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgelora.data import ImageSample, digest, labels_of, read_named_samples, read_samples
from edgelora.errors import DataError, EdgeLoraError
from edgelora.samples import Named
from edgelora.tasks import TASKS

TASK = "image-classification"


def put(path: Path, color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), color).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.png", "a/1.JPG", "a/deep/3.png", ".hidden/4.png", "__MACOSX/5.png", "a/.6.png"):
        put(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_for_each_label(folder: Path):
    samples = read_samples(folder, TASK)
    assert samples == [
        ImageSample(folder / "a/1.JPG", "a", "a/1.JPG"),
        ImageSample(folder / "a/deep/3.png", "a", "a/deep/3.png"),
        ImageSample(folder / "b/2.png", "b", "b/2.png"),
    ]
    assert labels_of(samples) == ("a", "b") and [s.stratum for s in samples] == ["a", "a", "b"]
    assert [line.content for line in read_named_samples(folder, TASK)] == samples


def test_records_name_pictures_from_where_they_lie(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    lines = [{"image": "a/1.JPG", "label": 3}, {"image": str(folder / "b/2.png"), "label": " x ", "adapter": "ann"}]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "data.csv").write_text("image,label\na/1.JPG,3\nb/2.png,x\n")
    wanted = [(folder / "a/1.JPG", "3"), (folder / "b/2.png", "x")]
    for name in ("data.jsonl", "data.csv"):
        assert [(s.path, s.label) for s in read_samples(folder / name, TASK) if isinstance(s, ImageSample)] == wanted
    assert [line.adapter for line in read_named_samples(folder / "data.jsonl", TASK)] == [None, "ann"]
    assert [line.content for line in TASKS[TASK].read_inputs(folder / "data.jsonl")] == [path for path, _ in wanted]


def test_the_digest_is_of_names_and_contents(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    before = digest(read_samples(folder, TASK))
    moved = tmp_path_factory.mktemp("moved") / "x"
    folder.rename(moved)
    assert digest(read_samples(moved, TASK)) == before
    put(moved / "b/2.png", "blue")
    assert digest(read_samples(moved, TASK)) != before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no pictures; expected is FOLDER/LABEL/FILE"),
        ({"a/b.txt": "x"}, "holds no pictures"),
        ({"1.png": "x", "a/2.png": "y"}, "1.png: lies in no folder that names its label"),
    ],
)
def test_folders_that_are_none(tmp_path: Path, files: dict[str, str], message: str):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_samples(tmp_path, TASK)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "none.png", "label": "a"}, "line 1: .*none.png: no such file"),
        ({"image": "a", "label": "a"}, "line 1: .*a: no such file"),
        ({"image": "a\0b", "label": "a"}, "line 1: .*no such file"),
        ({"image": 3, "label": "a"}, "the field 'image' must be a text"),
        ({"label": "a"}, "no field 'image'; it has 'label'"),
        ({"image": "a/1.JPG"}, "no field 'label'"),
    ],
)
def test_records_that_are_none(folder: Path, record: dict[str, object], message: str):
    path = folder / "data.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=message):
        read_samples(path, TASK)


@pytest.mark.parametrize("task", [TASK, "keypoint-detection", "semantic-segmentation", "sequence-classification"])
def test_what_is_not_there_and_folders_where_a_file_is_expected(folder: Path, task: str):
    with pytest.raises(DataError, match=r"nothing: no such file or folder"):
        read_samples(folder / "nothing", task)
    if task in ("keypoint-detection", "sequence-classification"):
        with pytest.raises(DataError, match="is a folder; expected is a CSV or JSONL file"):
            read_samples(folder, task)


def test_all_missing_pictures_are_told_at_once(folder: Path):
    path = folder / "data.csv"
    path.write_text("image,label\n" + "".join(f"no-{n}.png,a\n" for n in range(8)))
    with pytest.raises(DataError) as caught:
        read_samples(path, TASK)
    lines = str(caught.value).splitlines()
    assert [f"no-{n}.png" in line for n, line in enumerate(lines[:5])] == [True] * 5 and len(lines) == 6
    assert lines[5] == "and 3 more bad lines"


def test_files_and_folders_to_predict_from(folder: Path):
    task = TASKS[TASK]
    words = [Named(str(folder / "b/2.png"), None, "1"), Named(str(folder / "a"), None, "2")]
    assert [n.content for n in task.given_inputs(words)] == [folder / n for n in ("b/2.png", "a/1.JPG", "a/deep/3.png")]
    assert [n.content for n in task.read_inputs(folder / "a")] == [folder / "a/1.JPG", folder / "a/deep/3.png"]
    with pytest.raises(DataError, match=r"none\.png: no such file or folder"):
        task.given_inputs([*words, Named("none.png", None, "3")])
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no pictures"):
        task.given_inputs([Named(str(folder / "empty"), None, "1")])


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_names_that_no_file_has(tmp_path: Path, name: str):
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": name, "label": "x"}))
    with pytest.raises(DataError, match=r"line 1: .*no such file"):
        read_samples(tmp_path / "data.jsonl", TASK)
    with pytest.raises(DataError, match="no such file or folder"):
        TASKS[TASK].given_inputs([Named(name, None, "input 1")])


@pytest.mark.parametrize("task", [TASK, "object-detection", "semantic-segmentation", "keypoint-detection"])
def test_data_of_a_name_that_no_file_has(tmp_path: Path, task: str):
    path = tmp_path / ("a" * 4000 + ".csv")
    for read in (TASKS[task].read, TASKS[task].read_inputs):
        with pytest.raises(DataError, match=r"does not exist|cannot be read"):
            read(path)


names = st.text(st.characters(exclude_categories=("C",), exclude_characters="/\\,\"'"), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and text not in (".", "..")
)


@given(st.dictionaries(names, names, min_size=1, max_size=4))
def test_any_names_and_labels_are_read_from_csv(tmp_path_factory: pytest.TempPathFactory, given_names: dict[str, str]):
    folder = tmp_path_factory.mktemp("named")
    kept = {name: label for name, label in given_names.items() if len(name.encode()) < 200}
    for name in kept:
        (folder / name).write_bytes(b"x")
    table = io.StringIO()
    csv.writer(table).writerows([("image", "label"), *kept.items()])
    (folder / "data.csv").write_text(table.getvalue(), encoding="utf-8", newline="")
    if "data.csv" in kept:
        return
    found = read_samples(folder / "data.csv", TASK)
    assert [(s.path.name, s.label) for s in found if isinstance(s, ImageSample)] == list(kept.items())


@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, fmt: str):
    path = tmp_path_factory.mktemp("data") / "data"
    path.write_bytes((b"image,label\n" if fmt == "csv" else b"") + content)
    try:
        digest(read_samples(path, TASK, fmt))
    except EdgeLoraError:
        return
