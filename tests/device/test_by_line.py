"""`predict` and `eval` with an adapter for each line: the same answers as one by one, and errors that name the line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from edgelora import Model
from edgelora.data import PairSample, TokenSample
from edgelora.errors import ConfigError, DataError
from edgelora.evaluation import evaluate_each
from edgelora.tasks import objective_for
from edgelora.trainer import evaluate
from edgelora.training_config import TrainingConfig
from tests.device import tiny
from tests.device.command import Command
from tests.device.test_mixed import person

TEXTS = [row["text"] for row in tiny.commands(9)]
NAMES = ["ada", "bo", "cy"]
LABELS = {"ada": "abc", "bo": "ab", "cy": "abcde"}


@pytest.fixture(scope="module")
def people(bundle_of, tmp_path_factory) -> tuple[Path, Path]:
    """A bundle, and a store with adapters of three people: ranks and numbers of classes differ."""
    bundle, store = bundle_of("sequence-classification"), tmp_path_factory.mktemp("people") / "store"
    model = Model.open(bundle, store)
    for seed, name in enumerate(NAMES):
        model.store.save(name, person(model, seed, rank=seed + 1, classes=len(LABELS[name])))
    return bundle, store


@pytest.fixture
def at(people) -> tuple[str | Path, ...]:
    return people[0], "--store", people[1]


def named(path: Path, names=NAMES, **more) -> Path:
    """Records that name the three in turn."""
    rows = [{"text": t, "adapter": names[i % 3], **{k: v[i] for k, v in more.items()}} for i, t in enumerate(TEXTS)]
    return tiny.write_jsonl(path, rows)


def alone(run: Command, at, name: str, text: str) -> dict:
    (one,) = run.json("predict", *at, "--adapter", name, text)
    return one


def assert_each_has_its_own(run: Command, at, rows: list[dict]):
    assert [row["text"] for row in rows] == TEXTS[: len(rows)]
    assert [row["adapter"] for row in rows] == [NAMES[i % 3] for i in range(len(rows))]
    for row in rows:
        expected = alone(run, at, row["adapter"], row["text"])
        assert row["label"] == expected["label"]
        assert row["score"] == pytest.approx(expected["score"], abs=2e-4)
    assert len({row["label"] for row in rows}) > 1


def test_a_field_names_the_adapter(run: Command, at, tmp_path):
    assert_each_has_its_own(run, at, run.json("predict", *at, "--data", named(tmp_path / "people.jsonl")))
    table = tmp_path / "people.csv"
    table.write_text("".join(["text,adapter\n", *(f"{t},{NAMES[i % 3]}\n" for i, t in enumerate(TEXTS))]))
    assert_each_has_its_own(run, at, run.json("predict", *at, "--data", table))


def test_records_without_one_have_that_of_the_command(run: Command, at, tmp_path):
    path = named(tmp_path / "people.jsonl", ["ada", None, ""])
    rows = run.json("predict", *at, "--adapter", "cy", "--data", path)
    assert [row["adapter"] for row in rows] == ["ada", "cy", "cy"] * 3


def test_an_adapter_for_each_text(run: Command, at):
    chosen = [part for name in NAMES for part in ("--adapter", name)]
    rows = run.json("predict", *at, *chosen, *TEXTS[:3])
    assert_each_has_its_own(run, at, rows)
    status, out, _ = run("predict", *at, *chosen, *TEXTS[:3])
    assert status == 0 and out.splitlines()[0].split() == ["adapter", "text", "label", "score"]


def test_a_file_of_names_beside_standard_input(run: Command, at, tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("\n".join(NAMES * 3) + "\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS) + "\n"))
    assert_each_has_its_own(run, at, run.json("predict", *at, "--adapters-file", tmp_path / "names.txt"))


def test_unknown_adapters_are_named_with_their_lines(run: Command, at, tmp_path):
    path = tmp_path / "people.jsonl"
    named(path, ["ada", "zoe", "../evil"], label=["a"] * 9)
    for verb in ("predict", "eval"):
        message = run.refused(verb, *at, "--data", path)
        assert f"{path}, line 2: no adapter 'zoe'" in message and "there are ada, bo, cy" in message
        assert f"{path}, line 3: " in message and "line 5" not in message
    names = tmp_path / "names.txt"
    names.write_text("ada\nzoe\n")
    assert f"{names}, line 2: no adapter 'zoe'" in run.refused("predict", *at, "--adapters-file", names, *TEXTS[:2])
    assert "--adapter 2: no adapter 'zoe'" in run.refused(
        "predict", *at, "--adapter", "ada", "--adapter", "zoe", *TEXTS[:2]
    )
    path.write_text('{"text": "the lamp", "adapter": 3}\n')
    assert f"{path}, line 1: the field 'adapter' must be a name" in run.refused("predict", *at, "--data", path)


def test_names_that_do_not_fit(run: Command, at, tmp_path):
    path, names = named(tmp_path / "people.jsonl", label=["a"] * 9), tmp_path / "names.txt"
    names.write_text("ada\nbo\n")
    two = ("--adapter", "ada", "--adapter", "bo")
    assert "2 adapters for 3 texts" in run.refused("predict", *at, *two, *TEXTS[:3])
    assert "2 adapters for 1 texts" in run.refused("predict", *at, "--adapters-file", names, TEXTS[0])
    assert "give one of them" in run.refused("predict", *at, "--adapter", "ada", "--adapters-file", names, *TEXTS[:2])
    assert "of their own" in run.refused("predict", *at, *two, "--data", path)
    assert "--version" in run.refused("eval", *at, "--adapter", "ada", "--version", "1", "--data", path)
    assert "missing.txt" in run.refused("predict", *at, "--adapters-file", tmp_path / "missing.txt", "a")
    named(path, ["ada", None, "bo"], label=["a"] * 9)
    assert f"{path}, line 2: names no adapter" in run.refused("eval", *at, "--data", path)
    tiny.write_jsonl(path, [{"text": "the lamp", "label": "a"}])
    assert "--adapter" in run.refused("eval", *at, "--data", path)


def test_eval_measures_each_and_all(run: Command, at, tmp_path):
    labels = [LABELS[NAMES[i % 3]][i % 2] for i in range(9)]
    path = named(tmp_path / "people.jsonl", label=labels)
    result = run.json("eval", *at, "--data", path, "--batch-size", "4")
    assert result["samples"] == 9 and list(result["adapters"]) == NAMES
    for name, metrics in result["adapters"].items():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        own = tiny.write_jsonl(
            tmp_path / "own.jsonl", [{k: r[k] for k in ("text", "label")} for r in rows if r["adapter"] == name]
        )
        expected = run.json("eval", *at, "--adapter", name, "--data", own)
        assert metrics == pytest.approx({k: v for k, v in expected.items() if k != "adapter"}, rel=1e-4)
    for metric in ("loss", "accuracy"):
        parts = [one[metric] for one in result["adapters"].values()]
        assert result[metric] == pytest.approx(sum(parts) / 3)
    assert run("eval", *at, "--data", path)[1].splitlines()[-1].split()[:2] == ["all", "9"]


@pytest.mark.parametrize("task", ["token-classification", "sentence-embedding"])
def test_other_tasks_are_measured_each(task, bundle_of, tmp_path):
    model = Model.open(bundle_of(task), tmp_path)
    for seed, name in enumerate(NAMES):
        model.store.save(name, person(model, seed, rank=seed + 1))
    samples = [
        TokenSample(tuple(t.split()), tuple("abc"[len(w) % 3] for w in t.split()))
        if task == "token-classification"
        else PairSample(t, f"{t} now", None)
        for t in TEXTS
    ]
    adapters = [NAMES[(i // 2) % 3] for i in range(9)]
    mean, each = evaluate_each(model, samples, adapters, batch_size=9)
    weights = {}
    for name, metrics in each.items():
        own = [s for s, a in zip(samples, adapters, strict=True) if a == name]
        adapter = model.store.load(name)
        objective = objective_for(model, own, adapter.labels, TrainingConfig())
        assert metrics == pytest.approx(evaluate(model.bundle, adapter, objective), rel=1e-4)
        weights[name] = sum(len(s.words) if isinstance(s, TokenSample) else 1 for s in own)
    total = sum(weights.values())
    assert mean["loss"] == pytest.approx(sum(each[n]["loss"] * w for n, w in weights.items()) / total)


def test_what_cannot_be_measured_says_whose_it_is(people):
    model = Model.open(*people)
    rows = [{"text": "the lamp", "label": "e"}]
    path = tiny.write_jsonl(people[1].parent / "one.jsonl", rows)
    from edgelora.data import read_samples

    samples = read_samples(path, "sequence-classification")
    with pytest.raises(DataError, match=r"adapter 'bo': labels that the adapter does not know: e"):
        evaluate_each(model, samples, ["bo"])
    with pytest.raises(ConfigError, match="batch_size"):
        evaluate_each(model, samples, ["ada"], batch_size=0)
