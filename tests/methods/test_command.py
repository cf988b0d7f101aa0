"""`edgelora train --method …`, then what people do with an adapter: evaluate, export to PEFT, import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgelora.cli import main
from tests.device import tiny
from tests.methods.world import World

QUICK = ("--epochs", "2", "--batch-size", "8", "--lr", "0.02")
METHODS: dict[str, tuple[str, ...]] = {
    "lora": ("--lora-fa",),
    "dora": ("--rank", "4", "--loraplus-lr-ratio", "4"),
    "vera": ("--rank", "16", "--lora-dropout", "0.1"),
    "ia3": ("--feedforward-modules", "output.dense", "--ram", "4GB", "--validation-split", "0.25"),
    "bitfit": ("--target-modules", "value", "output.dense"),
    "layer-norm": ("--layers-to-transform", "1"),
    "bottleneck": ("--target-modules", "output.dense", "--rank", "3", "--non-linearity", "gelu", "--scaling", "2"),
    "full": ("--target-modules", "value"),
    "prompt": ("--num-virtual-tokens", "4"),
    "prefix": ("--num-virtual-tokens", "4", "--micro-batch-size", "4"),
    "lora-bias": ("--bias", "all", "--target-modules", "value"),
}

NOT_IN_PEFT = ("bottleneck", "full")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Any, str]:
    capsys.readouterr()
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, json.loads(out) if status == 0 else out, err


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_every_method_is_trained_used_and_exchanged(
    world: World, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bundle, store = world.classifier.bundle.path, ("--store", tmp_path / "store")
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands())
    kind = method.removesuffix("-bias")
    train = ("train", bundle, *store, "--adapter", "a", "--data", data, "--json", *QUICK, "--method", kind)
    status, report, err = run(capsys, *train, *METHODS[method])
    assert status == 0, err
    assert report["history"][-1]["train_loss"] < report["history"][0]["train_loss"]
    again = run(capsys, *train, *METHODS[method])[1]
    assert again["already_done"]
    shown = ("eval", bundle, *store, "--data", data, "--json", "--adapter")
    first = run(capsys, *shown, "a")[1]
    folder = tmp_path / "peft"
    status, _, err = run(capsys, "export", bundle, *store, "--adapter", "a", "-o", folder, "--json")
    if status and method in NOT_IN_PEFT:
        assert f"PEFT has no {method.upper()} adapters" in err
        export = ("adapters", bundle, *store, "export", "--person", "a", "-o", tmp_path / "person", "--json")
        assert run(capsys, *export)[0] == 0
        folder = tmp_path / "person" / "a" / "versions" / "000001"
    assert run(capsys, "import", bundle, *store, "--adapter", "b", folder, "--json")[0] == 0
    second = run(capsys, *shown, "b")[1]
    assert first["loss"] == second["loss"]
    other = "ia3" if method != "ia3" else "lora"
    status, _, err = run(capsys, *train[:-1], other)
    assert status == 2
    assert "exists with other settings (method" in err


def test_options_of_another_method_are_refused(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands())
    start = ("train", world.classifier.bundle.path, "--store", tmp_path, "--adapter", "a", "--data", data)
    status, _, err = run(capsys, *start, "--method", "ia3", "--rank", "4", "--rslora")
    assert status == 2
    assert "ia3 adapters have no --rank, --rslora" in err


def test_a_bundle_without_the_graphs_says_how_to_get_them(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tiny.write_bundle(tiny.module(), "sequence-classification", tmp_path / "plain.edgelora")
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands())
    status, _, err = run(capsys, "train", path, "--adapter", "a", "--data", data, "--method", "bitfit")
    assert status == 2
    assert "convert with --methods bitfit" in err


def test_info_names_the_methods(world: World, capsys: pytest.CaptureFixture[str]):
    main(["info", str(world.classifier.bundle.path)])
    assert (
        "methods        lora, dora, ia3, bitfit, layer-norm, bottleneck, full, prompt, prefix, lora-bias"
        in capsys.readouterr().out
    )


def test_points_lists_the_places_of_every_method(world: World, capsys: pytest.CaptureFixture[str]):
    status, made, _ = run(capsys, "points", world.classifier.bundle.path, "--json")
    assert status == 0
    own = {name: graphs.points for name, graphs in world.classifier.bundle.manifest.methods.items() if graphs.points}
    assert {name: [p["id"] for p in places] for name, places in made["methods"].items()} == {
        name: [p.id for p in places] for name, places in own.items()
    }
    main(["points", str(world.classifier.bundle.path)])
    text = capsys.readouterr().out
    assert "for layer-norm adapters" in text and "encoder.layer.1.output.LayerNorm" in text
