"""Skip-LoRA: adapters from every layer's input to the last hidden state, and training from pooled layer inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgelora.check import check
from edgelora.errors import ConversionError
from tests import families
from tests.convert.bundles import relative, train_feeds
from tests.convert.test_prefix import EXACT, ROWS, bundle_of, inputs_of


def hidden_states(family: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The inputs of all layers, and the last hidden state, by torch."""
    with torch.no_grad():
        tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
        made = families.build(family)(**tensors, output_hidden_states=True)
    return [h.numpy() for h in (*made.hidden_states[:-1], made.last_hidden_state)]


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("bert", "cls"), ("gpt2", "mean")])
def test_the_forward_graph_is_the_formula_and_the_pooled_one_is_the_same(family: str, pooling: str, tmp_path: Path):
    bundle = bundle_of(family, tmp_path, placement="skip", pooling=pooling)
    manifest = bundle.manifest
    assert [p.op for p in manifest.points] == ["Skip"] * 2 and [p.layer for p in manifest.points] == [0, 1]
    inputs = inputs_of(bundle, family)
    feeds = train_feeds(bundle, inputs)
    *layers, hidden = [h.astype(np.float64) for h in hidden_states(family, inputs)]
    for point, h in zip(manifest.points, layers, strict=True):
        hidden = hidden + h @ feeds[point.input_a].astype(np.float64) @ feeds[point.input_b].astype(np.float64)
    mask = inputs["attention_mask"][..., None]
    pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    assert manifest.head is not None
    wanted = pooled @ feeds[manifest.head.weight].T + feeds[manifest.head.bias]
    whole = bundle.forward.run(feeds)["logits"]
    assert relative(whole, wanted) < 2e-5

    (prefix,) = manifest.prefixes
    assert prefix.name == "skip" and [spec.shape[1:] for spec in prefix.kept] == [(32,)] * 3
    kept = bundle.graph(prefix.file).run(inputs)
    head = {name: feeds[name] for name in bundle.graph(prefix.forward).inputs if name in feeds}
    assert relative(bundle.graph(prefix.forward).run({**head, **kept})["logits"], whole) < EXACT
    feeds |= {"labels": np.arange(ROWS) % 3, "loss_weight": np.full(ROWS, 0.25, np.float32)}
    for record in prefix.training:
        feeds["cotangent.logits"] = np.random.default_rng(2).standard_normal(whole.shape).astype(np.float32)
        theirs = bundle.graph(bundle.training(record.loss, False).file).run(feeds)
        ours = bundle.graph(record.file).run({**feeds, **kept})
        assert ours.keys() == theirs.keys() and len(ours) >= 6
        for name, gradient in ours.items():
            assert relative(gradient, theirs[name]) < 10 * EXACT, name


@pytest.mark.parametrize("task", ["token-classification", "sentence-embedding"])
def test_other_tasks(task: str, tmp_path: Path):
    bundle = bundle_of("bert", tmp_path, placement="skip", task=task)
    verdict = check(bundle)
    assert verdict.passed
    assert any("skip" in g.file for g in verdict.graphs)
    shape = bundle.manifest.prefixes[0].kept[0].shape
    assert len(shape) == (3 if task == "token-classification" else 2)


def test_refusals_are_by_name(tmp_path: Path):
    with pytest.raises(ConversionError, match="placement skip adds to one last hidden state"):
        bundle_of("blocks", tmp_path, placement="skip", pooling="pooler")
    with pytest.raises(ConversionError, match="leave train_last and quantize out"):
        bundle_of("bert", tmp_path, placement="skip", train_last=(1,))
