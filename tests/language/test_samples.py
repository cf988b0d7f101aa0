"""The records that text generation reads, and what is said of those that it cannot."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgelora.errors import DataError
from edgelora.language.samples import Answer, Conversation, Passage, Preference
from edgelora.samples import digest, split
from edgelora.tasks.text_generation import TextGeneration
from tests.device.tiny import write_jsonl
from tests.language.texts import ANSWER, ASK, LONG

TASK = TextGeneration()


def test_each_of_trls_formats_is_read(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"text": "just a text\n"},
        {"messages": LONG, "adapter": "anna"},
        {"prompt": "2 + 2 =", "completion": " 4"},
        {"prompt": ASK, "completion": ANSWER},
        {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"},
        {"prompt": ASK, "chosen": ANSWER, "rejected": [{"role": "assistant", "content": "No."}]},
    ]
    named = TASK.read_named(write_jsonl(tmp_path / "all.jsonl", rows))
    assert [type(line.content) for line in named] == [Passage, Conversation, Answer, Answer, Preference, Preference]
    assert [line.adapter for line in named] == [None, "anna", None, None, None, None]
    assert named[3].content == Answer(ASK, ANSWER) and named[1].content == Conversation(LONG)
    assert named[4].where.endswith("all.jsonl, line 5")
    assert named[2].content.where == named[2].where  # pyright: ignore[reportAttributeAccessIssue]


def test_a_table_holds_answers_and_texts(tmp_path: Path):
    path = tmp_path / "answers.csv"
    path.write_text("prompt,completion\n2 + 2 =, 4\n3 + 3 =, 6\n")
    assert TASK.read(path) == [Answer("2 + 2 =", " 4"), Answer("3 + 3 =", " 6")]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "a", "completion": " "}, "'completion' must be a text that is not blank"),
        ({"prompt": "a"}, "the fields are 'prompt'; a record has text; or messages; or prompt and completion; or"),
        ({"text": "a", "messages": [ASK[0]]}, "the fields are 'text', 'messages'"),
        ({"messages": list(ASK)}, "no message is the assistant's"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": ["hi"]}, "message 1 must have a role and a content"),
        ({"messages": [{"role": "user"}]}, "messages: message 1: no field 'content'"),
        ({"messages": [*ASK, {"role": "assistant", "content": "\ud800"}]}, "not valid Unicode"),
        ({"prompt": "a", "completion": list(ANSWER)}, "must be all texts or all lists of messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "nothing is preferred"),
    ],
)
def test_a_record_that_cannot_be_learned_from_is_named_by_its_line(tmp_path: Path, record: Any, problem: str):
    path = write_jsonl(tmp_path / "bad.jsonl", [{"text": "fine"}, record])
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: ") as found:
        TASK.read(path)
    assert problem in str(found.value)


def test_a_file_without_records_shows_what_one_is(tmp_path: Path):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match=r"holds no samples; one line is .*completion"):
        TASK.read(path)


def test_a_plain_text_is_passages_that_a_split_deals_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, text = tmp_path / "notes.txt", "".join(f"{i}: a line of some words\r\n" for i in range(900))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    samples = TASK.read(path)
    train, held = split(samples, 0.2, np.random.default_rng(0))
    assert 0 < len(held) < len(train)
    assert "".join(one.text for one in samples if isinstance(one, Passage)) == text
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert TASK.read("-", "txt") == samples


def test_what_is_learned_does_not_depend_on_the_files_name(tmp_path: Path):
    one, other = (write_jsonl(tmp_path / name, [{"text": "a"}, {"prompt": "b", "completion": "c"}]) for name in "xy")
    assert digest(TASK.read(one, "jsonl")) == digest(TASK.read(other, "jsonl"))
    assert json.dumps([sample.record() for sample in TASK.read(one, "jsonl")])
