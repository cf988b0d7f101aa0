"""Readers of keypoints: the three forms, what is wrong by file and line, and nothing but DataError of any bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgelora.errors import DataError
from edgelora.vision.keypoint_files import Place, read_keypoints

DEEPLABCUT = """scorer,X,X,X,X
bodyparts,snout,snout,tail,tail
coords,x,y,x,y
labeled-data/v/a.png,1.5,2,30,4.25
labeled-data/v/b.png,,,7,8
"""


@pytest.fixture
def pictures(tmp_path):
    """Empty files of names that the tests speak of, in a project's folder for a video."""
    folder = tmp_path / "labeled-data" / "v"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    return folder


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


PLAIN = "image,name,x,y\n"
WANTED = [("a.png", (Place("snout", 1.5, 2), Place("tail", 30, 4.25))), ("b.png", (Place("tail", 7, 8),))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dlc.csv", DEEPLABCUT),
        ("quoted.csv", DEEPLABCUT.replace("scorer", '"scorer"', 1)),
        ("old.csv", DEEPLABCUT.replace("/", "\\")),
        (
            "columns.csv",
            "scorer,,,X,X,X,X\nbodyparts,,,snout,snout,tail,tail\ncoords,,,x,y,x,y\n"
            "labeled-data,v,a.png,1.5,2,30,4.25\nlabeled-data,v,b.png,NaN,NaN,7,8\n",
        ),
        (
            "plain.csv",
            "image,name,x,y,visible\na.png,snout,1.5,2,1\na.png,tail,30,4.25,1\nb.png,snout,0,0,0\nb.png,tail,7,8,1\n",
        ),
        (
            "lines.jsonl",
            '{"image": "a.png", "points": {"snout": [1.5, 2], "tail": [30, 4.25]}}\n'
            '{"image": "b.png", "points": {"snout": null, "tail": [7, 8]}}\n',
        ),
    ],
)
def test_every_form_tells_the_same(name, text, pictures):
    samples = [one.content for one in read_keypoints(written(pictures, name, text))]
    assert [(sample.path.name, sample.points) for sample in samples] == WANTED
    assert {sample.names for sample in samples} == {("snout", "tail")}
    assert all(sample.path.is_file() for sample in samples)
    record = samples[0].record()
    samples[0].path.write_bytes(b"other content")
    assert samples[0].record() != record  # a changed picture is changed data
    json.dumps(record)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", PLAIN + "a.png,snout,1,2\nc.png,snout,1,2\n", r"p\.csv, line 3: there is no picture .*c\.png"),
        ("p.csv", PLAIN + "a.png,snout,1,2\na.png,snout,1,2\n", r"line 3: the point 'snout' of a\.png was .*line 2"),
        ("p.csv", PLAIN + "a" * 5000 + ",snout,1,2\n", r"line 2: there is no picture"),
        ("p.csv", PLAIN + "a.png,snout,left,2\n", r"line 2: the point 'snout' .* \"left\" and \"2\""),
        ("p.csv", PLAIN + "a.png,snout,inf,2\n", r"line 2: the point 'snout' must have numbers"),
        ("p.csv", "image,name,x,y,visible\na.png,snout,1,2,maybe\n", r"line 2: the field 'visible' must be 0 or 1"),
        ("p.csv", "name,x,y\nsnout,1,2\n", r"image is missing"),
        ("p.csv", "image,name,x\na.png,snout,1\n", r"p\.csv, line 1: .*y is missing"),
        ("p.csv", PLAIN, r'holds no samples; one line is {"image": "a\.png", "points"'),
        ("p.jsonl", '{"image": "a.png", "points": [1, 2]}\n', r"line 1: the field \"points\" must be an object"),
        ("p.jsonl", '{"image": "a.png", "points": {"snout": [1]}}\n', r"line 1: the point 'snout' must be \[x, y\]"),
        ("d.csv", DEEPLABCUT.replace("30,4.25", "30"), r"d\.csv, line 4: 4 columns where the header has 5"),
        ("d.csv", DEEPLABCUT.replace("30", "x"), r"d\.csv, line 4: the point 'tail' must have numbers"),
        ("d.csv", DEEPLABCUT.replace("coords,x,y", "coords,x,z"), r"three rows of a header"),
        ("d.csv", "scorer,X,X\nindividuals,m1,m1\nbodyparts,a,a\ncoords,x,y\n", r"of one animal"),
        ("d.csv", DEEPLABCUT.replace("snout,snout", "snout,nose"), r"line 2: the columns of x and y"),
        ("d.csv", "\n".join(DEEPLABCUT.splitlines()[:3]), r"holds no samples"),
        ("d.csv", DEEPLABCUT.replace("a.png", "c.png"), r"line 4: there is no picture .*c\.png"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(name, text, said, pictures):
    with pytest.raises(DataError, match=said):
        read_keypoints(written(pictures, name, text))


def test_the_first_problems_and_a_count(pictures):
    lines = "".join(f"missing{i}.png,snout,1,2\n" for i in range(9))
    with pytest.raises(DataError, match="and 4 more problems"):
        read_keypoints(written(pictures, "p.csv", f"image,name,x,y\n{lines}"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, len(DEEPLABCUT)),
    inserted=st.binary(max_size=12),
    name=st.sampled_from(["f.csv", "f.jsonl"]),
)
def test_broken_files_are_read_or_refused(cut, inserted, name, pictures):
    body = DEEPLABCUT.encode()
    path = pictures / name
    path.write_bytes(body[:cut] + inserted + body[cut + 3 :])
    try:
        assert read_keypoints(path)
    except DataError as error:
        assert str(path) in str(error)
