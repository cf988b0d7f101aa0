"""Prompt and prefix tuning beyond the contract: other architectures, a classifier of PEFT's, what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from edgelora import Bundle, PrefixTuningConfig, PromptTuningConfig, check
from edgelora.adapter import absent_adapter, new_adapter, read_adapter, write_adapter
from edgelora.config import AdapterConfig
from edgelora.errors import AdapterError, ConfigError, ConversionError
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import module_source
from tests.methods.world import World

SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SETTINGS = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
OURS: dict[str, type[PromptTuningConfig | PrefixTuningConfig]] = {
    "prompt": PromptTuningConfig,
    "prefix": PrefixTuningConfig,
}
BOTH = pytest.mark.parametrize("method", OURS)


def module(name: str, **more: Any) -> Any:
    """A small model of transformers with random weights."""
    torch.manual_seed(0)
    if name == "gpt2":
        sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}
        model: Any = transformers.GPT2Model(transformers.GPT2Config(**sizes, **more))
    elif name == "llama":
        sizes = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 2, "use_cache": False}
        model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, **more))
    elif name == "roberta":
        sizes = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 34}
        model = transformers.RobertaModel(transformers.RobertaConfig(**sizes, **more), add_pooling_layer=False)
    elif name == "albert":
        sizes = {**SMALL, "num_hidden_layers": 3, "intermediate_size": 24, "embedding_size": 8}
        model = transformers.AlbertModel(transformers.AlbertConfig(**sizes, **more), add_pooling_layer=False)
    else:
        sizes = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 32}
        model = transformers.BertModel(transformers.BertConfig(**sizes, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0 if parameter.ndim > 1 else 1.0)  # 0.02 would let nothing show in the output
    return model.eval()


def to_bundle(base: Any, path: Path, outputs: list[str], exporter: str = "torchscript", **options: Any) -> Bundle:
    """A bundle with graphs for virtual tokens, of a model that takes ids and a mask."""
    ids = 5 + torch.arange(16).reshape(2, 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    source = module_source(base, given, "small", exporter, outputs=outputs)
    convert(source, path, ConvertOptions(**{"task": "feature-extraction", "methods": ("prompt", "prefix")} | options))
    return Bundle.open(path)


def samples() -> dict[str, np.ndarray]:
    """Three samples, two of them padded on the right."""
    rng = np.random.default_rng(0)
    mask = (np.arange(7) < np.array([[7], [5], [3]])).astype(np.int64)
    return {"input_ids": np.where(mask, rng.integers(5, 40, (3, 7)), 1), "attention_mask": mask}


@BOTH
@pytest.mark.parametrize(
    ("name", "exporter"), [("gpt2", "torchscript"), ("gpt2", "dynamo"), ("roberta", "torchscript")]
)
def test_other_models_compute_what_pefts_do(method: str, name: str, exporter: str, tmp_path: Path):
    """Causal masks, positions that are counted from ids; outputs and, by `check`, gradients."""
    bundle = to_bundle(module(name), tmp_path / "b.edgelora", ["hidden"], exporter, methods=(method,))
    feeds, graph = samples(), bundle.forward_in(method)
    theirs = peft.get_peft_model(
        module(name), SETTINGS[method](task_type="FEATURE_EXTRACTION", num_virtual_tokens=4)
    ).eval()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    adapter = read_adapter(tmp_path / "adapter", bundle.manifest, accept_base=True)
    with torch.no_grad():
        expected = theirs(**{k: torch.from_numpy(x) for k, x in feeds.items()}).last_hidden_state.numpy()[:, -7:]
    kept = feeds["attention_mask"] == 1
    got = graph.run({**feeds, **bundle.feeds(adapter)})["hidden"]
    off = graph.run({**feeds, **absent_adapter(bundle.manifest, method, bundle)})["hidden"]
    base = bundle.forward.run({**feeds, **absent_adapter(bundle.manifest)})["hidden"]
    np.testing.assert_array_equal(off, base)
    assert np.abs(expected - base)[kept].max() > 1e-2
    np.testing.assert_allclose(got[kept], expected[kept], rtol=0, atol=1e-5)
    assert check(bundle).passed


def test_a_layer_that_is_called_several_times_has_a_prefix_for_every_call(tmp_path: Path):
    """One exporter says that all calls are of one module, the other counts them: the same places, the same outputs."""
    made: list[np.ndarray] = []
    for exporter in ("torchscript", "dynamo"):
        bundle = to_bundle(module("albert"), tmp_path / exporter, ["hidden"], exporter, methods=("prefix",))
        assert len({p.id for p in bundle.manifest.points_in("prefix")}) == 3
        adapter = new_adapter(bundle.manifest, PrefixTuningConfig(num_virtual_tokens=4), rng=np.random.default_rng(0))
        made.append(bundle.forward_in("prefix").run({**samples(), **bundle.feeds(adapter)})["hidden"])
        off = bundle.forward.run({**samples(), **absent_adapter(bundle.manifest)})["hidden"]
        assert np.abs(made[-1] - off).max() > 1e-2
        assert check(bundle).passed
    np.testing.assert_allclose(made[0], made[1], rtol=0, atol=1e-5)


@BOTH
def test_a_classifier_of_pefts_gives_its_logits_here(method: str, tmp_path: Path):
    """With its head, whose pooling sees the first of the virtual tokens."""
    base = module("bert")
    model: Any = transformers.BertForSequenceClassification(base.config)
    model.bert = base
    theirs = peft.get_peft_model(model, SETTINGS[method](task_type="SEQ_CLS", num_virtual_tokens=4)).eval()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    outputs, task = ["hidden", "pooled"], "sequence-classification"
    bundle = to_bundle(base, tmp_path / "b.edgelora", outputs, task=task, pooling="pooler", methods=(method,))
    adapter = read_adapter(tmp_path / "adapter", bundle.manifest, accept_base=True)
    feeds = samples()
    with torch.no_grad():
        expected = theirs(**{k: torch.from_numpy(x) for k, x in feeds.items()}).logits.numpy()
    logits = bundle.forward_in(method).run({**feeds, **bundle.feeds(adapter)})["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    write_adapter(adapter, tmp_path / "again")
    back = peft.PeftModel.from_pretrained(model, str(tmp_path / "again")).eval()
    with torch.no_grad():
        again = back(**{k: torch.from_numpy(x) for k, x in feeds.items()}).logits.numpy()
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5)


@BOTH
def test_more_tokens_than_positions_are_refused_before_anything_runs(world: World, method: str):
    """The tiny base has 64 positions, and the bundle's texts up to 16 tokens."""
    manifest = world.features.bundle.manifest
    most: AdapterConfig = OURS[method](num_virtual_tokens=48)
    fits = new_adapter(manifest, most)
    fits.validate(manifest)
    more = replace(most, num_virtual_tokens=49)
    with pytest.raises(ConfigError, match=r"49 virtual tokens and 16 of a text .* 64 positions.*--max-length 15"):
        new_adapter(manifest, more)
    longer = {name: np.concatenate([x, x[:1]]) for name, x in fits.tensors.items()}
    with pytest.raises(AdapterError, match="64 positions"):
        replace(fits, config=more, tensors=longer).validate(manifest)


def test_models_without_a_place_are_refused_by_name(tmp_path: Path):
    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dense(x)

    source = module_source(Rows(), {"x": torch.zeros(2, 4)}, "rows", "torchscript", outputs=["y"])
    for method, why in (("prompt", "the one table of words"), ("prefix", "the model has none")):
        with pytest.raises(ConversionError, match=f"{why}.*leave {method} out of methods"):
            convert(source, tmp_path / "b.edgelora", ConvertOptions(task="feature-extraction", methods=(method,)))


def test_a_model_whose_positions_are_no_table_takes_prompts_alone(tmp_path: Path):
    """Rotary embeddings: an earlier cache would turn every query further."""
    base = module("llama")
    with pytest.raises(ConversionError, match="no table of them: leave prefix out of methods"):
        to_bundle(base, tmp_path / "b.edgelora", ["hidden"], methods=("prefix",))
    bundle = to_bundle(base, tmp_path / "b.edgelora", ["hidden"], methods=("prompt",))
    theirs = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4))
    theirs.eval().save_pretrained(str(tmp_path / "adapter"))
    adapter = read_adapter(tmp_path / "adapter", bundle.manifest, accept_base=True)
    feeds = samples()
    with torch.no_grad():
        expected = theirs(**{k: torch.from_numpy(x) for k, x in feeds.items()}).last_hidden_state.numpy()[:, 4:]
    got = bundle.forward_in("prompt").run({**feeds, **bundle.feeds(adapter)})["hidden"]
    kept = feeds["attention_mask"] == 1
    np.testing.assert_allclose(got[kept], expected[kept], rtol=0, atol=1e-5)


@BOTH
def test_virtual_tokens_belong_to_no_modules(method: str):
    with pytest.raises(ConfigError, match="belong to no modules: leave target_modules, exclude_modules out"):
        OURS[method](target_modules=("query",), exclude_modules=("value",))
    with pytest.raises(ConfigError, match="num_virtual_tokens must be a whole number"):
        OURS[method](num_virtual_tokens=0)
