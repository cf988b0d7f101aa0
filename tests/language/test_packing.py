"""Rows: a plain text is cut into them without losing a token, and short samples are packed into them unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.errors import BundleError, ConfigError, DataError
from edgelora.language.packing import Row, first_fit_decreasing, packed, row_of
from edgelora.language.samples import Answer, Passage, passages_of, read_passages
from edgelora.language.tokenized import CUT, Lengths, rows_of
from edgelora.language.tokens import Tokens
from tests.language import texts

NUMBERS = st.lists(st.integers(1, 12), max_size=40)


def drawn(length: int, seed: int) -> Row:
    ids = np.random.default_rng(seed).integers(0, 1000, length + 1)
    return row_of(ids[:-1], ids[1:], ids[1:] % 3 > 0, length)


@given(NUMBERS, st.integers(12, 30))
def test_every_sample_lies_in_one_packed_row_as_it_was(lengths: list[int], width: int):
    samples = [drawn(length, seed) for seed, length in enumerate(lengths)]
    rows = packed(samples, width)
    assert all(len(row) <= width for row in rows)
    assert sum(row.bytes for row in rows) == sum(lengths)
    found: list[tuple[list[int], ...]] = []
    for row in rows:
        ends = np.flatnonzero(np.diff(row.segments)) + 1
        sizes = [len(part) for part in np.split(row.inputs, ends)]
        assert row.segments.tolist() == np.repeat(np.arange(len(ends) + 1) + 1, sizes).tolist()
        for part in np.split(np.arange(len(row)), ends):
            assert row.positions[part].tolist() == list(range(len(part)))
            found.append((row.inputs[part].tolist(), row.labels[part].tolist(), row.counted[part].tolist()))
    whole = [(one.inputs.tolist(), one.labels.tolist(), one.counted.tolist()) for one in samples]
    assert sorted(found) == sorted(whole)


@given(NUMBERS, st.integers(12, 30))
def test_each_sample_goes_into_the_first_row_with_room(lengths: list[int], width: int):
    """Against the definition: in falling order, the first of all rows in which it fits."""
    rows: list[list[int]] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        into = next((row for row in rows if sum(lengths[i] for i in row) + lengths[sample] <= width), None)
        if into is None:
            rows.append(into := [])
        into.append(sample)
    assert first_fit_decreasing(np.asarray(lengths, np.int64), width) == rows


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return texts.tokens(tmp_path_factory.mktemp("tokens"))


@given(st.text(st.sampled_from("ab \n\r\té🙂東"), min_size=2, max_size=400), st.integers(1, 30))
def test_no_token_of_a_text_is_lost_or_learned_twice(reader: Tokens, text: str, cut: int):
    samples = list(passages_of(text))
    assert "".join(sample.text for sample in samples) == text
    rows = rows_of(samples, reader, Lengths(512, cut))
    ids = [*reader.encode(text).ids.tolist(), reader.eos[0]]
    assert np.concatenate([row.inputs for row in rows]).tolist() == ids[:-1]
    assert np.concatenate([row.labels for row in rows]).tolist() == ids[1:]
    assert all(row.counted.all() and len(row) == cut for row in rows[:-1]) and len(rows[-1]) <= cut
    first = int(reader.encode(text).bytes[0])
    assert sum(row.bytes for row in rows) == len(text.encode()) - first


def test_what_a_split_leaves_of_a_text_is_read_in_stretches(tmp_path: Path):
    """Special tokens stand where the text begins and ends, and a passage that is missing parts two stretches."""
    tokens = texts.tokens(tmp_path, begins=True)
    text = "".join(f"line {i} of many, and it goes on for a while\n" for i in range(400))
    samples = list(passages_of(text))
    assert len(samples) > 5 and all(one.text.endswith("\n") for one in samples)
    rows = rows_of([samples[0], samples[1], *samples[3:]], tokens, Lengths(10**6, 10**6))
    assert len(rows) == 2
    assert rows[0].inputs[0] == tokens.bos and rows[1].inputs[0] != tokens.bos
    assert rows[1].labels[-1] == tokens.eos[0] and rows[0].labels[-1] not in tokens.eos
    assert tokens.text(rows[0].inputs) + tokens.text(rows[0].labels[-1:]) == samples[0].text + samples[1].text


def test_a_text_that_ended_does_not_go_on_with_a_passage_of_another(reader: Tokens):
    one, other = Passage("one text", 0), Passage(" in the middle", 1, end=False)
    rows = rows_of([one, other], reader, Lengths(64, 64))
    assert [reader.text(row.inputs[:1]) for row in rows] == [
        reader.text(reader.encode(t.text).ids[:1]) for t in (one, other)
    ]
    assert rows[0].labels[-1] == reader.eos[0]


def test_texts_of_their_own_are_never_put_together(reader: Tokens):
    rows = rows_of([Passage("one text"), Passage("and another")], reader, Lengths(64, 64))
    assert [reader.text(row.inputs) for row in rows] == ["one text", "and another"]


def test_tokens_beyond_the_vocabulary_are_another_models(tmp_path: Path):
    tokens = texts.tokens(tmp_path, vocabulary=200)
    with pytest.raises(BundleError, match=r"tokenizer\.json: makes token \d+ .*the model knows 200.*another model's"):
        rows_of([Answer("once upon a time", " there was")], tokens, Lengths(64, 64))


def test_lengths_are_the_models_or_those_that_are_asked_for():
    assert Lengths.of(2048, None) == Lengths(2048, CUT)
    assert Lengths.of(128, None) == Lengths(128, 128)
    assert Lengths.of(2048, 1024) == Lengths(1024, 1024)
    with pytest.raises(ConfigError, match="max_length 4,096 is more than this model takes, 2,048"):
        Lengths.of(2048, 4096)


@pytest.mark.parametrize(("content", "message"), [(b"", "holds no text"), (b" \n\t", "no text"), (b"a\xff", "byte 1")])
def test_a_text_file_without_text_is_a_named_error(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"notes\.txt: .*{message}"):
        read_passages(path)


def test_a_text_without_two_tokens_has_nothing_to_learn(tmp_path: Path):
    tokens = texts.tokens(tmp_path)
    tokens.eos = ()
    with pytest.raises(DataError, match="line 1: there is nothing to learn"):
        rows_of([Passage("a", where="x.jsonl, line 1")], tokens, Lengths(64, 64))
