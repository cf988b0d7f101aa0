"""Manifests that fit their files and make no sense: refused by name, whichever way they are used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelora import BundleError, EdgeLoraError, LoraConfig, Model, TrainingConfig, train
from edgelora.adapter import new_adapter
from edgelora.data import TextSample
from tests.device import tiny

SAMPLES = [TextSample(row["text"], row["label"]) for row in tiny.commands(6)]
TEXTS = ["make the room warm", "stop"]

NONSENSE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no features": lambda b: b["points"][0].update(in_features=0),
    "negative features": lambda b: b["points"][0].update(out_features=-1),
    "enormous features": lambda b: b["points"][0].update(out_features=10**12),
    "no groups": lambda b: b["points"][1].update(groups=0),
    "kernel": lambda b: b["points"][1].update(kernel=[0]),
    "layer": lambda b: b["points"][1].update(layer=-3),
    "a point twice": lambda b: b["points"].append(b["points"][0]),
    "type": lambda b: b["inputs"][1].update(dtype="x"),
    "text type": lambda b: b["inputs"][1].update(dtype="float32"),
    "no shape": lambda b: b["inputs"][2].update(shape=[]),
    "no inputs": lambda b: b.update(inputs=[]),
    "size": lambda b: b["outputs"][0].update(shape=["batch", 0]),
    "no loss": lambda b: [graph.update(outputs=[]) for graph in b["training"]],
    "no logits": lambda b: b["outputs"][0].update(name="x"),
    "head": lambda b: b["head"].update(features=0),
    **{
        f"length {length!r}": lambda b, length=length: b.update(preprocessing={"kind": "arrays", "max_length": length})
        for length in ("x", None, float("inf"), 4.5, True, 0)
    },
}
OTHER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "other features": lambda b: b["points"][0].update(in_features=33),
    "no points": lambda b: b.update(points=[]),
    "a point less": lambda b: b["points"].pop(),
    "another forward": lambda b: b.update(forward=b["training"][0]["file"]),
    "another mixed": lambda b: b.update(mixed=b["forward"]),
    "not a graph": lambda b: b.update(forward="weights.bin"),
    "pad": lambda b: b["preprocessing"].update(pad_id=10**6),
    "other training": lambda b: [graph.update(file=b["forward"]) for graph in b["training"]],
    "other input": lambda b: b["inputs"][0].update(name="token_type_ids"),
    "other head": lambda b: b["head"].update(features=31),
}


def spoil(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = bundle / "bundle.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    return bundle


@pytest.mark.parametrize("name", NONSENSE)
def test_what_no_bundle_means_is_refused_when_it_is_opened(damaged: Path, name: str):
    with pytest.raises(BundleError, match=r"malformed|not list"):
        Model.open(spoil(damaged, NONSENSE[name]))


@pytest.mark.parametrize("name", OTHER)
def test_what_does_not_fit_its_graphs_is_a_documented_error(bundle: Path, damaged: Path, tmp_path: Path, name: str):
    adapter = new_adapter(Model.open(bundle).bundle.manifest, LoraConfig(r=1), ("x", "y"))
    failures = 0
    for act in (
        lambda model: model.outputs(TEXTS, adapter),
        lambda model: model.predict(TEXTS, adapters=[adapter, adapter.with_tensors(adapter.tensors)]),
        lambda model: train(model, "ann", SAMPLES, config=TrainingConfig(num_train_epochs=1, batch_size=3)),
    ):
        try:
            if not failures:
                spoil(damaged, OTHER[name])
            act(Model.open(damaged, tmp_path / "store"))
        except EdgeLoraError:
            failures += 1
    assert failures


def test_an_input_that_is_out_of_range_is_a_documented_error(bundle: Path, tmp_path: Path):
    model = Model.open(bundle, tmp_path / "store")
    adapter = new_adapter(model.bundle.manifest, LoraConfig(r=1), ("x", "y"))
    inputs = model.encode(TEXTS)
    with pytest.raises(EdgeLoraError, match="out of range"):
        model.outputs({**inputs, "input_ids": np.full_like(inputs["input_ids"], 10**6)}, adapter)
