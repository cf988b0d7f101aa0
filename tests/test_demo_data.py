"""The demo's sentences: well formed, balanced, held out properly, and in conflict between the two people."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "two_people"
PEOPLE = ("early_bird", "night_owl")
PER_CLASS = {"train": 19, "test": 8}
SPLITS = tuple(PER_CLASS)
INTENTS = 8


def read(person: str, split: str) -> list[tuple[str, str]]:
    """The (text, label) pairs of one file, in its order."""
    pairs = []
    for line in (FOLDER / f"{person}.{split}.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        assert list(record) == ["text", "label"], line
        pairs.append((record["text"], record["label"]))
    return pairs


def normal(text: str) -> str:
    """The sentence without case and punctuation, so that "Let's go!" and "let's go" count as one."""
    return " ".join(re.findall(r"[\w']+", text.casefold()))


def labels_by_sentence(person: str, split: str) -> dict[str, str]:
    return {normal(text): label for text, label in read(person, split)}


each_file = pytest.mark.parametrize(("person", "split"), [(p, s) for p in PEOPLE for s in SPLITS])


@each_file
def test_sentences_and_labels_are_well_formed(person: str, split: str):
    for text, label in read(person, split):
        assert text == " ".join(text.split()), text
        assert 2 <= len(text.split()) <= 15, text
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", label), label


@each_file
def test_classes_are_balanced(person: str, split: str):
    counts = Counter(label for _, label in read(person, split))
    assert len(counts) == INTENTS
    assert set(counts.values()) == {PER_CLASS[split]}


@each_file
def test_no_sentence_occurs_twice(person: str, split: str):
    counts = Counter(normal(text) for text, _ in read(person, split))
    assert [text for text, count in counts.items() if count > 1] == []


@each_file
def test_lines_are_not_grouped_by_label(person: str, split: str):
    labels = [label for _, label in read(person, split)]
    repeats = sum(a == b for a, b in pairwise(labels))
    assert repeats < len(labels) / 3


@pytest.mark.parametrize("person", PEOPLE)
def test_held_out_labels_occur_in_training(person: str):
    assert {label for _, label in read(person, "test")} <= {label for _, label in read(person, "train")}


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize("trained_by", PEOPLE)
def test_held_out_sentences_are_in_no_training_file(person: str, trained_by: str):
    assert labels_by_sentence(person, "test").keys() & labels_by_sentence(trained_by, "train").keys() == set()


@pytest.mark.parametrize("split", SPLITS)
def test_shared_sentences_mean_different_things(split: str):
    mine, theirs = (labels_by_sentence(person, split) for person in PEOPLE)
    shared = mine.keys() & theirs.keys()
    assert [text for text in shared if mine[text] == theirs[text]] == []
    assert len(shared) >= 0.4 * max(len(mine), len(theirs))


def test_a_shared_phrase_family_has_one_pair_of_labels():
    """The pair (label for one, label for the other) names a family: the same eight in both splits."""
    pairs = {}
    for split in SPLITS:
        mine, theirs = (labels_by_sentence(person, split) for person in PEOPLE)
        pairs[split] = Counter((mine[text], theirs[text]) for text in mine.keys() & theirs.keys())
    assert pairs["train"].keys() == pairs["test"].keys()
    assert len(pairs["train"]) == INTENTS
    assert set(pairs["train"].values()) == {10}
    assert set(pairs["test"].values()) == {4}
