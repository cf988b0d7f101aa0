"""Samples from CSV and JSONL: what is read, and how a bad line is named."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.data import (
    NumberSample,
    PairSample,
    TextSample,
    TokenSample,
    digest,
    labels_of,
    read_samples,
    read_texts,
    split,
)
from edgelora.errors import ConfigError, DataError, EdgeLoraError

CLASSES, NUMBERS, TOKENS, PAIRS = (
    "sequence-classification",
    "regression",
    "token-classification",
    "sentence-embedding",
)


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(folder: Path, *records: Any) -> Path:
    return file(folder, "data.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def test_each_task_has_its_fields(tmp_path: Path):
    read = lambda task, *records: read_samples(jsonl(tmp_path, *records), task)  # noqa: E731
    assert read(CLASSES, {"text": "a b", "label": " x "}) == [TextSample("a b", "x")]
    assert read(CLASSES, {"text": "a", "label": 3}, {"text": "a", "label": True}) == [
        TextSample("a", "3"),
        TextSample("a", "True"),
    ]
    assert read(NUMBERS, {"text": "a", "label": 2}, {"text": "a", "label": "-1.5e3"}) == [
        NumberSample("a", (2.0,)),
        NumberSample("a", (-1500.0,)),
    ]
    assert read(NUMBERS, {"text": "a", "label": [1, 2.5]}) == [NumberSample("a", (1.0, 2.5))]
    assert read(TOKENS, {"tokens": ["a", "b"], "labels": ["O", "B"]}) == [TokenSample(("a", "b"), ("O", "B"))]
    assert read(PAIRS, {"anchor": "a", "positive": "b"}) == [PairSample("a", "b", None)]
    assert read(PAIRS, {"anchor": "a", "positive": "b", "negative": "c"}) == [PairSample("a", "b", "c")]
    assert read_texts(jsonl(tmp_path, {"text": "a", "more": 1}, {"text": "b"})) == ["a", "b"]
    with pytest.raises(ConfigError, match="no data format"):
        read("feature-extraction", {"text": "a"})


def test_csv_has_columns_in_any_order_and_more_of_them(tmp_path: Path):
    path = file(tmp_path, "a.csv", 'label, id ,text\r\non,1,"now, or\nnever ""ever"""\r\n\r\noff,2,später\r\n')
    assert read_samples(path, CLASSES) == [TextSample('now, or\nnever "ever"', "on"), TextSample("später", "off")]
    assert read_texts(path) == ['now, or\nnever "ever"', "später"]
    path = file(tmp_path, "a.csv", "anchor,positive,negative\na,b,\nc,d,")
    assert read_samples(path, PAIRS) == [PairSample("a", "b", None), PairSample("c", "d", None)]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path):
    assert read_samples(file(tmp_path, "a.csv", b"\xef\xbb\xbftext,label\na,b\n"), CLASSES) == [TextSample("a", "b")]
    assert read_texts(file(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "\xef\xbb\xbfa"}\n')) == ["\ufeffa"]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).filter(lambda t: t.strip())


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_what_csv_and_jsonl_writers_write_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], end: str
):
    folder = tmp_path_factory.mktemp("data")
    expected = [TextSample(text, label.strip()) for text, label in rows]
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    assert read_samples(file(folder, "a.csv", table.getvalue()), CLASSES) == expected
    for ascii_only in (True, False):
        lines = [json.dumps({"text": t, "label": x}, ensure_ascii=ascii_only) for t, x in rows]
        assert read_samples(file(folder, "a.jsonl", end.join(lines)), CLASSES) == expected


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.jsonl", "", CLASSES, r'a\.jsonl: holds no samples; one line is {"text": "…", "label": "…"}'),
        ("a.jsonl", "\n  \n", CLASSES, "holds no samples"),
        ("a.csv", "", CLASSES, "holds no samples"),
        ("a.csv", "text,label\n", CLASSES, "holds no samples"),
        ("a.txt", "a", CLASSES, "CSV or JSONL"),
        ("a.csv", "text;label\na;b\n", CLASSES, "line 1: the columns are text;label; expected are text, label"),
        ("a.csv", "\n\nText,label\na,b\n", CLASSES, "line 3: the columns are Text, label; .*of which text is missing"),
        ("a.csv", "text,label,text\na,b,c\n", CLASSES, "column text is there twice"),
        ("a.csv", "text,label\na\n", CLASSES, "line 2: 1 columns where the header has 2"),
        ("a.csv", "text,label\na,b,c\n", CLASSES, "line 2: 3 columns"),
        ("a.csv", 'text,label\na,b\n"x\ny",o\n,d\n', CLASSES, "line 5: the field 'text'"),
        ("a.csv", 'text,label\na,b\n"never closed\nc,d\n', CLASSES, "line 3: not CSV"),
        ("a.csv", 'text,label\n"a"b,c\n', CLASSES, "line 2: not CSV"),
        ("a.csv", "text,label\n" + "a" * 200_000 + ",b\n", CLASSES, "line 2: not CSV .*limit"),
        ("a.csv", "text,label\na,b\n" + "a" * (1 << 21) + ",b\n", CLASSES, "line 3: longer than 1,048,576 bytes"),
        ("a.csv", b"text,label\na,b\nc\xff,d\n", CLASSES, "line 3: not UTF-8"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), CLASSES, "line 1: not UTF-8"),
        ("a.csv", "tokens,labels\na b,O O\n", TOKENS, "use JSONL"),
        ("a.jsonl", b'{"text": "\xe4", "label": "b"}', CLASSES, "line 1: not UTF-8"),
        ("a.jsonl", '\n{"text": "a"}\n', CLASSES, r"line 2: no field 'label'; it has 'text'"),
        (
            "a.jsonl",
            '{"text": " ", "label": "b"}',
            CLASSES,
            "line 1: the field 'text' must be a text that is not blank",
        ),
        ("a.jsonl", '{"text": "a", "label": ""}', CLASSES, "'label' must be a text"),
        ("a.jsonl", '{"text": "a", "label": ["b"]}', CLASSES, "'label' must be a text"),
        ("a.jsonl", '{"text": 5, "label": "b"}', CLASSES, "'text' must be a text"),
        ("a.jsonl", '{"text": "\\ud800", "label": "b"}', CLASSES, "'text' is not valid Unicode"),
        ("a.jsonl", '{"text": "a", "label": "\\udfff"}', CLASSES, "'label' is not valid Unicode"),
        ("a.jsonl", "[1]", CLASSES, "line 1: not a JSON object"),
        ("a.jsonl", "{", CLASSES, "line 1: not JSON"),
        ("a.jsonl", "[" * 100_000, CLASSES, "line 1: not JSON"),
        ("a.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", CLASSES, "line 1: not JSON"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n' + "a" * (1 << 21), CLASSES, "line 2: longer than 1,048,576 bytes"),
        ("a.jsonl", '{"text": "a", "label": "x"}', NUMBERS, "'label' must be a number that float32 holds, not \"x\""),
        ("a.jsonl", '{"text": "a", "label": null}', NUMBERS, "not null"),
        ("a.jsonl", '{"text": "a", "label": NaN}', NUMBERS, "not NaN"),
        ("a.jsonl", '{"text": "a", "label": 1e39}', NUMBERS, "float32"),
        ("a.jsonl", '{"text": "a", "label": 1' + "0" * 400 + "}", NUMBERS, "float32"),
        ("a.jsonl", '{"text": "a", "label": []}', NUMBERS, r"not \[\]"),
        ("a.jsonl", '{"tokens": ["a"], "labels": ["O", "O"]}', TOKENS, "1 tokens and 2 labels"),
        ("a.jsonl", '{"tokens": [], "labels": []}', TOKENS, "'tokens' must be a list of texts"),
        ("a.jsonl", '{"tokens": "a b", "labels": ["O", "O"]}', TOKENS, "'tokens' must be a list of texts"),
        ("a.jsonl", '{"tokens": ["a"], "labels": [" "]}', TOKENS, "'labels' must be a text"),
        ("a.jsonl", '{"anchor": "a", "positive": 1}', PAIRS, "'positive' must be a text"),
        (
            "a.jsonl",
            '{"anchor": "a", "positive": "b"}\n{"anchor": "a", "positive": "b", "negative": "c"}',
            PAIRS,
            "1 of 2 samples have a negative",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, task: str, message: str):
    with pytest.raises(DataError, match=message) as caught:
        read_samples(file(tmp_path, name, content), task)
    assert name in str(caught.value)


def test_the_first_bad_lines_are_listed_and_the_rest_counted(tmp_path: Path):
    good = {"text": "a", "label": "b"}
    with pytest.raises(DataError) as caught:
        read_samples(jsonl(tmp_path, good, {}, good, *[{"text": ""}] * 6), CLASSES)
    lines = str(caught.value).splitlines()
    assert [line.split(",")[1].split(":")[0] for line in lines[:-1]] == [f" line {n}" for n in (2, 4, 5, 6, 7)]
    assert lines[-1] == "and 2 more bad lines"


def test_what_is_no_file_is_named(tmp_path: Path):
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_samples(path, CLASSES, "csv")


def test_standard_input_is_jsonl_unless_said(tmp_path: Path):
    script = "import sys; from edgelora.data import read_samples; print(read_samples('-', sys.argv[1], *sys.argv[2:]))"

    def read(content: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, CLASSES, *arguments],
            input=content,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
            check=False,
        )
        return done.stdout + done.stderr

    assert "TextSample(text='a', label='b')" in read('{"text": "a", "label": "b"}\n')
    assert "TextSample(text='a', label='b')" in read("text,label\na,b\n", "csv")
    assert "standard input, line 1: not JSON" in read("text,label\n")


@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl"]), st.sampled_from([CLASSES, NUMBERS, TOKENS, PAIRS]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, fmt: str, task: str):
    headers = {CLASSES: b"text,label\n", NUMBERS: b"text,label\n", PAIRS: b"anchor,positive\n", TOKENS: b""}
    path = file(tmp_path_factory.mktemp("data"), "data", (headers[task] if fmt == "csv" else b"") + content)
    try:
        samples = read_samples(path, task, fmt)
    except EdgeLoraError:
        return
    assert samples
    digest(samples)
    labels_of(samples)


def test_reading_csv_changes_no_setting_of_the_csv_module(tmp_path: Path):
    before = csv.field_size_limit()
    read_samples(file(tmp_path, "a.csv", "text,label\na,b\n"), CLASSES)
    assert csv.field_size_limit() == before


def test_labels_are_sorted_and_unique():
    assert labels_of([TextSample("a", "y"), TextSample("b", "x"), TextSample("c", "y")]) == ("x", "y")
    assert labels_of([TokenSample(("a", "b"), ("O", "B")), TokenSample(("c",), ("A",))]) == ("A", "B", "O")
    assert labels_of([NumberSample("a", (1.0,))]) == ()


samples_of_classes = st.lists(st.builds(TextSample, texts, st.sampled_from("abc")), min_size=2, max_size=40)


@given(samples_of_classes, samples_of_classes)
def test_the_digest_tells_samples_and_their_order_apart(one: list[TextSample], other: list[TextSample]):
    assert digest(one) == digest([TextSample(s.text, s.label) for s in one])
    assert (digest(one) == digest(other)) == (one == other)
    assert (digest(one) == digest(one[::-1])) == (one == one[::-1])


def test_the_digest_tells_kinds_apart():
    kinds = [
        TextSample("a", "b"),
        TextSample("ab", ""),
        PairSample("a", "b", None),
        PairSample("a", "b", "c"),
        TokenSample(("a",), ("b",)),
        NumberSample("a", (1.0,)),
        NumberSample("a", (1.5,)),
    ]
    assert len({digest([sample]) for sample in kinds} | {digest(kinds), digest([])}) == len(kinds) + 2


@given(samples_of_classes, st.floats(0.01, 0.99), st.integers(0, 100))
def test_a_split_keeps_all_samples_and_shares_each_label(samples: list[TextSample], share: float, seed: int):
    counts = Counter(sample.label for sample in samples)
    if max(counts.values()) < 2:
        with pytest.raises(ConfigError, match=r"too few to hold out .* give more, two of a label at least"):
            split(samples, share, np.random.default_rng(seed))
        return
    train, held = split(samples, share, np.random.default_rng(seed))
    assert Counter(train) + Counter(held) == Counter(samples)
    assert (train, held) == split(samples, share, np.random.default_rng(seed))
    for label, count in counts.items():
        part = sum(sample.label == label for sample in held)
        assert part == (min(max(round(share * count), 1), count - 1) if count > 1 else 0)
    order: Iterator[TextSample] = iter(samples)
    assert all(sample in order for sample in train)


@pytest.mark.parametrize("seed", range(6))
def test_each_label_of_a_split_is_learned(seed: int):
    """A label that one sample of many has, as a rare object, is not held out alone."""
    samples = [TokenSample(("a", "b"), ("O", "rare" if i in (3, 7) else "O")) for i in range(10)]
    samples[4] = TokenSample(("a", "b"), ("O", "once"))
    train, held = split(samples, 0.5, np.random.default_rng(seed))
    assert {label for sample in train for label in sample.labels} == {"O", "rare", "once"}
    assert held and Counter(train) + Counter(held) == Counter(samples)


def test_a_split_depends_on_the_generator():
    samples = [TextSample(str(i), "a") for i in range(50)]
    held = [tuple(split(samples, 0.2, np.random.default_rng(seed))[1]) for seed in range(3)]
    assert len(set(held)) == 3
    assert {len(part) for part in held} == {10}


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share: float):
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        split([TextSample("a", "b")] * 4, share, np.random.default_rng(0))
