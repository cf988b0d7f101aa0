"""`edgelora train` and `eval` of a language model, as a person gives them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgelora import Model, TrainingConfig, train
from edgelora.cli import main
from edgelora.language.samples import Answer
from tests.device.tiny import write_jsonl
from tests.language.texts import LINES, LONG

Command = Callable[..., tuple[int, str, str]]
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is the capital of France?", "completion": " Paris."},
    {"messages": LONG},
    {"text": "once upon a time there was a girl"},
    {"prompt": "once", "completion": " upon a time"},
]


@pytest.fixture
def run(language_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """run(verb, *options): exit status, standard output and error."""

    def command(verb: str, *options: str | Path) -> tuple[int, str, str]:
        status = main([verb, str(language_bundle), "--store", str(tmp_path / "store"), *map(str, options)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


def test_notes_of_an_unknown_name_may_be_plain_text(run: Command, tmp_path: Path):
    path = tmp_path / "notes.md"
    path.write_text("the quick brown fox")
    status, _, said = run("train", "--adapter", "ann", "--data", path)
    assert status == 2 and "is it plain text, CSV or JSONL? Name it .txt, .csv or .jsonl, or say --format" in said
    assert run("train", "--adapter", "ann", "--data", path, "--format", "txt", "--max-steps", "1")[0] == 0


def test_weights_of_classes_are_for_tasks_that_have_some(run: Command, tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    status, _, said = run("train", "--adapter", "ann", "--data", path, "--class-weight", "balanced")
    assert status == 2 and "class_weight is for classes, and text-generation has none" in said


def test_a_text_file_is_learned_and_evaluated(run: Command, tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("".join(f"{i}. {LINES[i % len(LINES)]}\n" for i in range(120)), encoding="utf-8")
    options = ("--max-length", "64", "--batch-size", "8", "--lr", "0.02", "--epochs", "3", "--validation-split", "0.3")
    status, _, err = run("train", "--adapter", "anna", "--data", path, *options)
    assert status == 0, err
    assert "train_perplexity" in err and "validation bits_per_byte" in err
    status, out, err = run("eval", "--adapter", "anna", "--data", path, "--max-length", "64", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["samples"] > 2 and 0 < found["loss"] < found["bits_per_byte"] < found["perplexity"]
    status, out, err = run("eval", "--data", path, "--max-length", "64", "--json")
    assert status == 0, err
    base = json.loads(out)
    assert base["adapter"] is None and base["bits_per_byte"] > found["bits_per_byte"]


def test_a_page_of_text_is_too_little_to_hold_out_some_of_and_says_what_helps(run: Command, tmp_path: Path):
    path = tmp_path / "letter.txt"
    path.write_text("the quick brown fox\n" * 9, encoding="utf-8")
    status, _, said = run("train", "--adapter", "ann", "--data", path, "--validation-split", "0.1", "--max-steps", "1")
    assert status == 2
    assert "1 sample is too few to hold out 0.1 of: give more, two of a label at least" in said
    assert "a plain text is a sample for each page or so" in said and "or hold out none" in said


def test_records_of_several_kinds_are_learned_together_and_people_evaluated_at_once(run: Command, tmp_path: Path):
    path = write_jsonl(tmp_path / "mixed.jsonl", ROWS)
    for name in ("anna", "ben"):
        status, _, err = run("train", "--adapter", name, "--data", path, "--epochs", "2", "--packing")
        assert status == 0, err
    named = [{**row, "adapter": ("anna", "ben")[i % 2]} for i, row in enumerate(ROWS)]
    status, out, err = run("eval", "--data", write_jsonl(tmp_path / "named.jsonl", named), "--json")
    assert status == 0, err
    found = json.loads(out)
    assert set(found["adapters"]) == {"anna", "ben"} and found["samples"] == len(ROWS)
    assert (
        min(a["loss"] for a in found["adapters"].values())
        < found["loss"]
        < max(a["loss"] for a in found["adapters"].values())
    )


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"prompt": "a " * 200, "completion": "b"}, (), "bad.jsonl, line 1: 402 tokens, and a row has room for 192"),
        (
            {"text": "once upon"},
            ("--loss", "dpo"),
            'the loss "dpo" learns from samples with prompt, chosen and rejected',
        ),
        ({"text": "once upon"}, ("--max-length", "9999"), "max_length 9,999 is more than this model takes, 192"),
        ({"text": "once upon"}, ("--beta", "0"), "beta must be above 0"),
        ({"text": "once upon"}, ("--ram", "1MB"), "give as much, or shorten the rows (train --max-length)"),
        ({"text": ""}, (), "bad.jsonl, line 1: the field 'text' must be a text that is not blank"),
    ],
)
def test_what_cannot_be_learned_is_said_in_a_line(
    run: Command, tmp_path: Path, row: dict[str, Any], options: tuple[str, ...], message: str
):
    path = write_jsonl(tmp_path / "bad.jsonl", [row])
    status, _, err = run("train", "--adapter", "anna", "--data", path, *options)
    assert status == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize(("rate", "steps", "told"), [("1e3", "4", True), ("1e30", "1", True), ("1e-3", "4", False)])
def test_an_adapter_that_became_worse_is_told(run: Command, tmp_path: Path, rate: str, steps: str, told: bool):
    """The loss stays finite: behind the last norm no logit is beyond what the head makes of it."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    options = ("train", "--adapter", "anna", "--data", path, "--batch-size", "4", "--again", "--lr")
    assert run(*options, "0.02", "--epochs", "12")[0] == 0  # the base itself is no better than any
    status, out, err = run(*options, rate, "--epochs", "4", "--max-steps", steps)
    assert status == 0, err
    assert ("warning: this adapter is worse than what it began from: the loss of the first batch" in out) == told


def test_a_preference_run_that_is_continued_is_the_same_to_the_last_bit(run: Command, tmp_path: Path):
    pairs = [
        {"prompt": line[:9], "chosen": line[9:30], "rejected": other[:40]}
        for line, other in zip(LINES, LINES[::-1], strict=True)
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    options = ("--data", path, "--batch-size", "2", "--epochs", "3", "--save-steps", "1", "--lr", "0.01")
    assert run("train", "--adapter", "whole", *options)[0] == 0
    killed = _KilledAt(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgelora.cli.learn.EpochLines", lambda *_: killed)
        assert run("train", "--adapter", "parts", *options)[0] != 0
    status, _, err = run("train", "--adapter", "parts", *options)
    assert status == 0 and "continuing at step 4 of 6" in err
    whole, parts = (_weights(tmp_path / "store", name) for name in ("whole", "parts"))
    assert whole == parts


def test_a_run_that_is_continued_on_another_day_reads_the_text_of_the_day_it_began(
    language_bundle: Path, tmp_path: Path
):
    """Its template writes the day before every conversation."""
    bundle = tmp_path / "dated.edgelora"
    shutil.copytree(language_bundle, bundle)
    template = bundle / "chat_template.jinja"
    dated = "{{ strftime_now('%A') }} " + template.read_text()
    template.write_text(dated)
    manifest = json.loads((bundle / "bundle.json").read_text())
    entry = {"size": len(dated.encode()), "sha256": hashlib.sha256(dated.encode()).hexdigest()}
    manifest["files"]["chat_template.jinja"] = entry
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    model = Model.open(bundle, tmp_path / "store")
    samples = [Answer(({"role": "user", "content": line[:9]},), ({"role": "assistant", "content": line[9:30]},))
               for line in LINES]  # fmt: skip
    config = TrainingConfig(num_train_epochs=2, batch_size=2, save_steps=1)

    def train_on(day: int, name: str, config: TrainingConfig = config, **more: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgelora.training.datetime", SimpleNamespace(now=lambda: datetime(2026, 11, day)))
            train(model, name, samples, config=config, **more)

    train_on(2, "monday")
    train_on(3, "tuesday")
    with pytest.raises(KeyboardInterrupt):
        train_on(2, "parts", callback=_KilledAt(2))
    train_on(3, "parts")
    monday, tuesday, parts = (_weights(tmp_path / "store", name) for name in ("monday", "tuesday", "parts"))
    assert parts == monday != tuesday
    assert not model.store.state_path("parts").exists()
    kept = replace(config, keep_cache=True)
    train_on(2, "kept", kept)
    train_on(3, "kept", kept, restart=True)
    assert _weights(tmp_path / "store", "kept") == tuesday, "a run that is over has no day left for a new one"


class _KilledAt:
    quiet = True

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, step: Any, progress: Any) -> None:
        if step.step == self.step:
            raise KeyboardInterrupt


def _weights(store: Path, name: str) -> bytes:
    from edgelora.store import AdapterStore

    adapter = AdapterStore(store).load(name)
    return b"".join(adapter.tensors[key].tobytes() for key in sorted(adapter.tensors))
