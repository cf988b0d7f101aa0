"""The command line: every --json parses, every help works, texts are for people."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.device import tiny
from tests.device.command import QUICK, Command

VERBS = (  # noqa: SIM905
    "convert points info check bench demo train eval predict generate chat adapters export import rules zoo"
).split()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_json(run: Command, verb: str):
    status, out, _ = run(verb, "--help")
    assert status == 0
    assert "example:" in out and f"edgelora {verb}" in out and "--json" in out


def test_the_command_itself_has_help_and_names_the_verbs(run: Command):
    status, out, _ = run("--help")
    assert status == 0
    assert all(verb in out for verb in VERBS)


def test_train_reports_in_json(run: Command, bundle: Path, store: Path, data: Path):
    report = run.json("train", bundle, "--store", store, "--adapter", "home", "--data", data, *QUICK)
    assert (report["adapter"], report["version"], report["steps"]) == ("home", 1, 6)
    assert report["labels"] == ["bright", "quiet", "warm"]
    assert len(report["history"]) == 2
    again = run.json("train", bundle, "--store", store, "--adapter", "home", "--data", data, *QUICK)
    assert again["already_done"]


def test_eval_and_predict_in_json(run: Command, home, data: Path):
    measured = run.json("eval", *home, "--data", data)
    assert measured["samples"] == 24
    assert 0 <= measured["accuracy"] <= 1
    (one,) = run.json("predict", *home, "turn the light up")
    assert one["text"] == "turn the light up"
    assert one["label"] in ("bright", "quiet", "warm")
    assert 1 / 3 <= one["score"] <= 1
    texts = [row["text"] for row in tiny.commands()]
    rows = run.json("predict", *home, *texts)
    share = np.mean([r["label"] == row["label"] for r, row in zip(rows, tiny.commands(), strict=True)])
    assert share == pytest.approx(measured["accuracy"])


def test_predict_reads_files_and_standard_input(run: Command, home, data: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(run.json("predict", *home, "--data", data)) == 24
    lines = io.TextIOWrapper(io.BytesIO("the lamp\n\nthe hall é\n".encode()), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    assert [r["text"] for r in run.json("predict", *home)] == ["the lamp", "the hall é"]


def test_train_reads_standard_input(run: Command, bundle: Path, store: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("train", bundle, "--store", store, "--data", "-", *QUICK)
    text = "".join(json.dumps(row) + "\n" for row in tiny.commands())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run.json(*options, "--adapter", "lines")["steps"] == 6
    text = "label,text\n" + "".join(f'{row["label"]},"{row["text"]}"\n' for row in tiny.commands())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run.json(*options, "--adapter", "table", "--format", "csv")["steps"] == 6


def test_the_store_in_json(run: Command, home, bundle: Path, store: Path, data: Path):
    assert run("train", *home, "--data", data, *QUICK, "--again")[0] == 0
    verb = ("adapters", bundle)
    at = ("--store", store)
    (listed,) = run.json(*verb, "list", *at)
    assert (listed["name"], listed["current"], len(listed["versions"])) == ("home", 2, 2)
    assert run.json(*verb, "show", "home", *at) == listed
    assert run.json(*verb, "rollback", "home", *at) == {"adapter": "home", "version": 1}
    assert run.json(*verb, "rollback", "home", "--version", "2", *at)["version"] == 2
    assert run.json(*verb, "remove", "home", *at) == {"removed": "home"}
    assert run.json(*verb, "list", *at) == []


def test_an_exported_adapter_is_imported_as_it_was(run: Command, home, bundle: Path, store: Path, tmp_path: Path):
    folder = tmp_path / "peft"
    assert run.json("export", *home, "-o", folder)["path"] == str(folder)
    assert run.json("import", bundle, folder, "--store", store, "--adapter", "copy")["version"] == 1
    texts = [row["text"] for row in tiny.commands()]
    copied = ("predict", bundle, "--store", store, "--adapter", "copy", *texts)
    assert run.json(*copied) == run.json("predict", *home, *texts)


def test_bundle_verbs_in_json(run: Command, bundle: Path, damaged: Path):
    points = run.json("points", bundle, "--rank", "3")
    assert points["rank"] == 3
    assert points["parameters"] == sum(p["parameters"] for p in points["points"])
    assert points["points"][0]["parameters"] == 3 * (32 + 32)
    assert run.json("info", bundle)["task"] == "sequence-classification"
    verdict = run.json("check", damaged)  # stores its verdict: not in the bundle that all tests share
    assert verdict["passed"]
    assert {p["id"] for p in points["points"]} <= {p["id"] for p in verdict["points"]}
    assert run.json("info", damaged)["verification"]["passed"]


@pytest.mark.parametrize("verb", ["points", "info", "train", "predict"])
def test_texts_for_people(run: Command, home, bundle: Path, data: Path, verb: str):
    arguments = {"train": (*home, "--data", data, *QUICK), "predict": (*home, "the lamp")}.get(verb, (bundle,))
    status, out, _ = run(verb, *arguments)
    assert status == 0
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)
    assert len(out.splitlines()) > (0 if verb == "train" else 1)
