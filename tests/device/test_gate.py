"""The gate, with a real base: what is worse on held-out samples is saved and not used, and the report says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgelora import ConfigError, DataError, Gate, LoraConfig, Model, TrainingConfig, read_samples, train
from edgelora.cli import main
from edgelora.data import TextSample
from edgelora.gate import Verdict
from tests.device import tiny

GOOD = TrainingConfig(num_train_epochs=6, batch_size=8, learning_rate=2e-2)
USELESS = replace(GOOD, num_train_epochs=1, learning_rate=1e-12, seed=3)
LORA = LoraConfig(r=4, lora_alpha=8)


def texts(rows: list[dict[str, str]]) -> list[TextSample]:
    return [TextSample(row["text"], row["label"]) for row in rows]


TRAIN, HELD_OUT = texts(tiny.commands(24)), texts(tiny.commands(36)[24:])
WRONG = [
    replace(sample, label={"warm": "quiet", "quiet": "bright", "bright": "warm"}[sample.label]) for sample in TRAIN
]


def test_what_is_better_becomes_current_and_what_is_worse_does_not(open_model: Callable[..., Model]):
    model = open_model()
    first = train(model, "ann", TRAIN, lora=LORA, config=GOOD, gate=Gate(HELD_OUT))
    assert first.gate is not None and first.active
    assert first.gate.previous is None
    assert first.gate.new > first.gate.base
    assert (first.gate.metric, first.gate.samples) == ("accuracy", len(HELD_OUT))
    said = model.predict([s.text for s in HELD_OUT], "ann")
    second = train(model, "ann", WRONG, config=GOOD, gate=Gate(HELD_OUT))
    assert second.gate is not None and not second.active
    assert second.gate.previous == first.gate.new > second.gate.new
    assert (second.version, model.store.current_version("ann")) == (2, 1)
    assert f"{second.gate.new:.4f}" in second.gate.reason and f"{first.gate.new:.4f}" in second.gate.reason
    assert model.predict([s.text for s in HELD_OUT], "ann") == said
    assert [v.number for v in model.store.show("ann").versions] == [1, 2]
    assert not model.store.state_path("ann").exists()


def test_the_figures_are_those_of_an_evaluation_by_hand(open_model: Callable[..., Model]):
    model = open_model()
    train(model, "ann", TRAIN, lora=LORA, config=replace(GOOD, num_train_epochs=2))
    report = train(model, "ann", WRONG, config=replace(GOOD, num_train_epochs=1), gate=Gate(HELD_OUT, margin=2.0))
    assert report.gate is not None and report.gate.accepted, "a margin of everything accepts everything"

    def accuracy(version: int) -> float:
        answers = model.predict([s.text for s in HELD_OUT], model.store.load("ann", version))
        return sum(a == s.label for a, s in zip(answers, HELD_OUT, strict=True)) / len(HELD_OUT)

    assert report.gate.previous == pytest.approx(accuracy(1))
    assert report.gate.new == pytest.approx(accuracy(2))


def test_a_first_version_that_is_no_better_than_the_base_is_not_used(open_model: Callable[..., Model]):
    model = open_model()
    report = train(model, "ann", TRAIN, lora=LORA, config=USELESS, gate=Gate(HELD_OUT, margin=-0.05))
    assert not report.active
    assert "the base" in report.gate.reason  # pyright: ignore[reportOptionalMemberAccess]
    assert not model.store.exists("ann")
    again = train(model, "ann", TRAIN, lora=LORA, config=USELESS, gate=Gate(HELD_OUT, margin=-0.05))
    assert again.already_done and again.gate == report.gate and again.version == 1, "judged again, not trained again"
    relaxed = train(model, "ann", TRAIN, lora=LORA, config=USELESS, gate=Gate(HELD_OUT, margin=0.0))
    assert relaxed.active and relaxed.version == 1 and model.store.current_version("ann") == 1
    better = train(model, "ann", TRAIN, lora=LORA, config=GOOD, gate=Gate(HELD_OUT), restart=True)
    assert better.active and better.version == 2


def test_new_classes_and_another_order_are_comparable(open_model: Callable[..., Model]):
    """Restarted on data whose classes come in another order, the version before is judged by its labels' names."""
    model = open_model()
    first = train(model, "ann", TRAIN, lora=LORA, config=GOOD, gate=Gate(HELD_OUT))
    more = [*(TextSample(f"open the door {e}".strip(), "a-door") for e in tiny.ENDINGS), *TRAIN]
    second = train(model, "ann", more, lora=LORA, config=GOOD, gate=Gate(HELD_OUT, margin=1.0), restart=True)
    assert second.labels is not None and second.labels[0] == "a-door"
    assert second.gate is not None and second.gate.previous == first.gate.new  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("task", ["regression", "sentence-embedding", "token-classification"])
def test_every_task_has_its_metric(task: str, open_model: Callable[..., Model], tmp_path: Path):
    rows = {
        "regression": [{"text": r["text"], "label": float(i % 3)} for i, r in enumerate(tiny.commands(12))],
        "sentence-embedding": [{"anchor": r["text"], "positive": f"please {r['text']}"} for r in tiny.commands(12)],
        "token-classification": [
            {"tokens": (words := r["text"].split()), "labels": ["A" if "m" in w else "O" for w in words]}
            for r in tiny.commands(12)
        ],
    }[task]
    samples = read_samples(tiny.write_jsonl(tmp_path / "d.jsonl", rows), task)
    model = open_model(task)
    config = TrainingConfig(num_train_epochs=1, batch_size=4)
    report = train(model, "ann", samples, lora=LORA, config=config, gate=Gate(samples, margin=100.0))
    assert report.gate is not None and report.gate.accepted
    assert report.gate.higher_is_better == (report.gate.metric != "mse")


def test_bad_gates_are_refused_before_anything_is_trained(open_model: Callable[..., Model]):
    model = open_model()
    with pytest.raises(ConfigError, match="no held-out samples"):
        Gate([])
    with pytest.raises(ConfigError, match="finite"):
        Gate(HELD_OUT, float("nan"))
    with pytest.raises(DataError, match="elsewhere"):
        train(model, "ann", TRAIN, lora=LORA, config=GOOD, gate=Gate([TextSample("a", "elsewhere")]))
    assert model.store.list() == []


def test_verdicts():
    verdict = Verdict("accuracy", True, 0.0, 10, 0.8, 0.8, 0.5)
    assert verdict.accepted
    assert not replace(verdict, new=0.79).accepted
    assert replace(verdict, new=0.79, margin=0.02).accepted
    assert not replace(verdict, margin=-0.01).accepted
    assert not replace(verdict, new=float("nan")).accepted
    mse = Verdict("mse", False, 0.1, 10, 1.05, 1.0, 2.0)
    assert mse.accepted
    assert not replace(mse, new=1.2).accepted
    assert "version before" in replace(mse, new=1.2).reason and "1.2000" in replace(mse, new=1.2).reason


def test_the_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def command(*words: str | Path) -> tuple[int, str, str]:
        status = main([*map(str, words), "--store", str(tmp_path / "store")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands(24))
    wrong = tiny.write_jsonl(tmp_path / "wrong.jsonl", [{"text": s.text, "label": s.label} for s in WRONG])
    held = tiny.write_jsonl(tmp_path / "held.jsonl", tiny.commands(36)[24:])
    settings = ("--adapter", "ann", "--epochs", "6", "--batch-size", "8", "--lr", "0.02")
    status, out, _ = command("train", bundle, "--data", data, *settings, "--held-out", held)
    assert status == 0 and "accepted" in out
    status, out, _ = command(
        "train", bundle, "--data", wrong, *settings, "--held-out", held, "--gate-margin", "0.01", "--json"
    )
    body = json.loads(out)
    assert status == 0 and body["active"] is False and body["gate"]["accepted"] is False
    assert body["gate"]["new"] < body["gate"]["previous"] and "not accepted" in body["gate"]["reason"]
    status, out, _ = command("adapters", bundle, "list", "--json")
    assert [(e["name"], e["current"], len(e["versions"])) for e in json.loads(out)] == [("ann", 1, 2)]
    status, out, _ = command("adapters", bundle, "rollback", "ann", "--to", "2")
    assert (status, out) == (0, "ann: version 2 is current\n")
    status, out, _ = command("adapters", bundle, "rollback", "ann")
    assert (status, out) == (0, "ann: version 1 is current\n")
    status, _, err = command("train", bundle, "--data", data, *settings, "--gate-margin", "0", "--again")
    assert status == 2 and "--held-out FILE" in err
    status, out, _ = command("train", bundle, "--data", data, *settings, "--held-out-split", "0.3", "--json")
    assert status == 0 and json.loads(out)["gate"]["samples"] == 6
