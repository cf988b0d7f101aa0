"""The same adapter in PEFT and here: its folder is read by both, and both compute the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertModel

from edgelora.adapter import Adapter, new_adapter, read_adapter, write_adapter
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError
from edgelora.manifest import InsertionPoint
from tests.tiny_manifest import WITHOUT_HEAD

HIDDEN, INNER = 16, 20
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patterns": {"rank_pattern": {r"layer\.0\..*query": 2, "value": 3}, "alpha_pattern": {"value": 20}},
    "rslora": {"use_rslora": True, "rank_pattern": {"intermediate.dense": 6}},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layer"},
}


def base() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=INNER
    )
    return BertModel(config).eval()


def points() -> tuple[InsertionPoint, ...]:
    linear = [(n, m) for n, m in base().named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("encoder")]
    return tuple(InsertionPoint(n, "MatMul", m.in_features, m.out_features) for n, m in linear)


MANIFEST = replace(WITHOUT_HEAD, points=points(), target_modules=("query", "value"))
IDS = torch.arange(12).reshape(2, 6)


def hidden_states(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state.numpy()


def theirs(extra: dict[str, Any]) -> Any:
    """A PEFT model whose adapter changes what it computes."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value", "intermediate.dense"], **extra)
    model = get_peft_model(base(), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return model.eval()


def with_adapter_added(adapter: Adapter) -> np.ndarray:
    """What the base computes when each weight is W + (A·B')ᵀ with the tensors that we would feed."""
    model, feeds = base(), adapter.feeds(MANIFEST)
    for point in MANIFEST.points:
        delta = feeds[point.input_a] @ feeds[point.input_b]
        model.get_submodule(point.id).weight.data += torch.from_numpy(delta.T.copy())
    return hidden_states(model)


@pytest.mark.parametrize("extra", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_that_peft_saved_computes_the_same_here(tmp_path: Path, extra: dict[str, Any]):
    model = theirs(extra)
    model.save_pretrained(str(tmp_path))
    adapter = read_adapter(tmp_path, MANIFEST, accept_base=True)
    adapter.validate(MANIFEST)
    expected = hidden_states(model)
    assert np.abs(expected - hidden_states(base())).max() > 0.1
    np.testing.assert_allclose(with_adapter_added(adapter), expected, atol=1e-5)


@pytest.mark.parametrize("extra", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_that_we_wrote_computes_the_same_in_peft(tmp_path: Path, extra: dict[str, Any]):
    extra = {k: tuple(v) if isinstance(v, list) else v for k, v in extra.items()}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=("query", "value", "intermediate.dense"), **extra)
    rng = np.random.default_rng(0)
    adapter = new_adapter(MANIFEST, config, rng=rng)
    adapter = adapter.with_tensors(
        {n: rng.standard_normal(t.shape).astype(np.float32) * np.float32(0.5) for n, t in adapter.tensors.items()}
    )
    write_adapter(adapter, tmp_path)
    model = PeftModel.from_pretrained(base(), str(tmp_path)).eval()
    expected = with_adapter_added(adapter)
    assert np.abs(expected - hidden_states(base())).max() > 0.1
    np.testing.assert_allclose(hidden_states(model), expected, atol=1e-5)
    assert len(adapter.points) == sum("lora_A" in n for n, _ in model.named_parameters())


def test_half_precision_from_peft_is_read(tmp_path: Path):
    model = theirs({}).to(torch.bfloat16)
    model.save_pretrained(str(tmp_path))
    adapter = read_adapter(tmp_path, MANIFEST, accept_base=True)
    adapter.validate(MANIFEST)
    np.testing.assert_allclose(with_adapter_added(adapter), hidden_states(model.float()), atol=5e-2)


@pytest.mark.parametrize(
    ("extra", "message"),
    [({"bias": "lora_only"}, "bias|lora_only"), ({"lora_bias": True}, "bias")],
)
def test_what_we_cannot_represent_is_refused(tmp_path: Path, extra: dict[str, Any], message: str):
    theirs(extra).save_pretrained(str(tmp_path))
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path, MANIFEST, accept_base=True)


def test_a_head_goes_through_peft(tmp_path: Path):
    """modules_to_save: a classifier of ours is PEFT's classifier, and back."""
    from transformers import BertForSequenceClassification

    from edgelora.manifest import Head

    manifest = replace(
        MANIFEST,
        task="sequence-classification",
        head=Head("classifier", HIDDEN, "sequence"),
        points=tuple(replace(p, id=f"bert.{p.id}") for p in MANIFEST.points),
    )
    labels = ("a", "b", "c")
    adapter = new_adapter(manifest, LoraConfig(r=2, target_modules=("query",)), labels, rng=np.random.default_rng(0))
    write_adapter(adapter, tmp_path / "ours")
    config = BertConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=INNER,
    )
    config.num_labels = len(labels)
    model: Any = PeftModel.from_pretrained(BertForSequenceClassification(config), str(tmp_path / "ours"))
    state = {n: p for n, p in model.named_parameters() if "classifier" in n and "modules_to_save" in n}
    (weight,) = [p.detach().numpy() for n, p in state.items() if n.endswith("weight")]
    np.testing.assert_array_equal(weight, adapter.tensors["classifier.weight"])
    model.save_pretrained(str(tmp_path / "back"))
    back = read_adapter(tmp_path / "back", manifest, accept_base=True)
    assert "classifier" in (back.config.modules_to_save or ())
    assert back.tensors.keys() == adapter.tensors.keys()
    for name, tensor in adapter.tensors.items():
        np.testing.assert_array_equal(back.tensors[name], tensor)
