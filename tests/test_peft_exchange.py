"""Adapters to and from PEFT: whole model families, task models with their prefix, any settings, and what is refused."""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers.pytorch_utils import Conv1D

from edgelora.adapter import Adapter, new_adapter, read_adapter, write_adapter
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, ConfigError, ConversionError
from edgelora.manifest import Head, InsertionPoint, Manifest
from edgelora_tools.recipes import fetch, load_recipe
from tests import families
from tests.test_adapter_peft import base as small_bert
from tests.tiny_manifest import WITHOUT_HEAD

FAMILIES = {
    "bert": ["query", "value", "dense"],
    "distilbert": ["q_lin", "v_lin", "lin1"],
    "gpt2": ["c_attn", "c_fc"],
    "vit": ["attention.q_proj", "fc1", "query", "output.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}


def linear_points(model: Any) -> tuple[InsertionPoint, ...]:
    """A point for every linear module; GPT-2's hold their weights the other way round."""
    points = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            points.append(InsertionPoint(name, "MatMul", module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            points.append(InsertionPoint(name, "MatMul", module.nx, module.nf))
    return tuple(points)


def manifest_of(model: Any, **fields: Any) -> Manifest:
    return replace(WITHOUT_HEAD, points=linear_points(model), **fields)


def run(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return next(iter(model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).values())).numpy()


def with_adapter(model: Any, adapter: Adapter, manifest: Manifest) -> Any:
    """The model with W + A·B' for each weight, and the tensors that a bundle would be fed."""
    model, feeds = copy.deepcopy(model), adapter.feeds(manifest)
    for point in manifest.points:
        delta = torch.from_numpy(feeds[point.input_a] @ feeds[point.input_b])
        module = model.get_submodule(point.id)
        module.weight.data += delta if isinstance(module, Conv1D) else delta.T
    return model


def randomized(model: Any, seed: int = 1, scale: float = 0.3) -> Any:
    """A PEFT model whose adapter changes what it computes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model.eval()


def wrapped(model: Any, seed: int = 1, **config: Any) -> Any:
    return randomized(get_peft_model(copy.deepcopy(model), peft.LoraConfig(**config)), seed)


def loaded(model: Any, folder: Path) -> Any:
    return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


def lora_of(adapter: Adapter) -> LoraConfig:
    assert isinstance(adapter.config, LoraConfig)
    return adapter.config


def randomized_adapter(adapter: Adapter, seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)
    drawn = {n: rng.standard_normal(t.shape).astype(np.float32) * np.float32(0.3) for n, t in adapter.tensors.items()}
    return adapter.with_tensors(drawn)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_compute_the_same_on_both_sides(family: str, tmp_path: Path):
    model, inputs = families.build(family), families.sample(family)
    manifest = manifest_of(model)
    targets = [t for t in FAMILIES[family] if any(f".{p.id}".endswith(f".{t}") for p in manifest.points)]
    theirs = wrapped(model, r=3, lora_alpha=5, target_modules=targets, alpha_pattern={targets[0]: 9}, use_rslora=True)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = read_adapter(tmp_path / "theirs", manifest, accept_base=True)
    adapter.validate(manifest)
    wanted = run(theirs, inputs)
    assert np.abs(wanted - run(model, inputs)).max() > 1e-2
    np.testing.assert_allclose(run(with_adapter(model, adapter, manifest), inputs), wanted, rtol=1e-5, atol=1e-5)
    write_adapter(adapter, tmp_path / "ours")
    np.testing.assert_allclose(run(loaded(model, tmp_path / "ours"), inputs), wanted, rtol=1e-5, atol=1e-5)
    for name, tensor in load_file(tmp_path / "theirs" / "adapter_model.safetensors").items():
        np.testing.assert_array_equal(load_file(tmp_path / "ours" / "adapter_model.safetensors")[name], tensor)


def test_all_minilm_computes_the_same_on_both_sides(tmp_path: Path):
    try:
        folder = fetch(load_recipe("minilm-l6"), lambda _: None)
    except ConversionError as error:
        pytest.skip(f"the recipe's model cannot be fetched: {error}")
    model: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    manifest, targets = manifest_of(model), ["query", "value", "output.dense"]
    theirs = wrapped(model, r=8, lora_alpha=16, target_modules=targets, rank_pattern={r"layer\.[0-2]\..*value": 4})
    randomized(theirs, scale=0.02)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = read_adapter(tmp_path / "theirs", manifest, accept_base=True)
    adapter.validate(manifest)
    ids = np.random.default_rng(0).integers(1000, 20000, (3, 9))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    wanted = run(theirs, inputs)
    assert np.abs(wanted - run(model, inputs)).max() > 1e-2
    np.testing.assert_allclose(run(with_adapter(model, adapter, manifest), inputs), wanted, rtol=1e-5, atol=1e-5)
    write_adapter(adapter, tmp_path / "ours")
    np.testing.assert_allclose(run(loaded(model, tmp_path / "ours"), inputs), wanted, rtol=1e-5, atol=1e-5)


# --- task models, which hold the base under a name ----------------------------------------------------------


def task_model(family: str, labels: int = 3) -> tuple[Any, str]:
    torch.manual_seed(2)
    config = copy.deepcopy(families.CONFIGS[family]())
    config.num_labels, config.pad_token_id = labels, 0
    model: Any = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return model.eval(), model.base_model_prefix


def task_manifest(backbone: Any, features: int, name: str = "classifier") -> Manifest:
    head = Head(name, features, "sequence")
    return manifest_of(backbone, task="sequence-classification", head=head)


PATTERNED: dict[str, Any] = {
    "rank_pattern": {r"^bert\.encoder\.layer\.0\.attention\.self\.query": 2, "value": 3},
    "alpha_pattern": {r"^bert\.encoder\.layer\.1\..*query": 20, r"bert\..*\.intermediate\.dense": 1.5},
}


def test_an_adapter_of_a_task_model_finds_the_points_of_its_base(tmp_path: Path):
    """The prefix goes from keys and patterns alike: alphas stay those of their modules."""
    model, prefix = task_model("bert")
    manifest = task_manifest(model.bert, 32)
    targets = ["query", "value", "intermediate.dense"]
    theirs = wrapped(model, task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=targets, **PATTERNED)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = read_adapter(tmp_path / "theirs", manifest, accept_base=True)
    adapter.validate(manifest)
    assert "encoder.layer.0.attention.self.query" in adapter.points
    assert adapter.config.modules_to_save is not None and "classifier" in adapter.config.modules_to_save
    inputs = families.sample("bert")
    wanted = run(theirs, inputs)
    ours = copy.deepcopy(model)
    ours.bert = with_adapter(model.bert, adapter, manifest)
    ours.classifier.weight.data = torch.from_numpy(adapter.tensors["classifier.weight"])
    ours.classifier.bias.data = torch.from_numpy(adapter.tensors["classifier.bias"])
    np.testing.assert_allclose(run(ours, inputs), wanted, rtol=1e-5, atol=1e-5)

    write_adapter(adapter, tmp_path / "back", prefix=prefix)
    back = loaded(model, tmp_path / "back")
    np.testing.assert_allclose(run(back, inputs), wanted, rtol=1e-5, atol=1e-5)
    again = read_adapter(tmp_path / "back", manifest, accept_base=True)
    assert again.points == adapter.points
    assert all(lora_of(again).scale(p) == lora_of(adapter).scale(p) for p in adapter.points)


def test_an_adapter_of_the_base_alone_finds_the_points_of_a_task_model(tmp_path: Path):
    model, _ = task_model("bert")
    theirs = wrapped(model.bert, r=2, target_modules=["query"], rank_pattern={r"^encoder\.layer\.1\..*": 5})
    theirs.save_pretrained(str(tmp_path))
    manifest = manifest_of(model)
    adapter = read_adapter(tmp_path, manifest, accept_base=True)
    adapter.validate(manifest)
    assert {lora_of(adapter).rank(p) for p in adapter.points} == {2, 5}
    assert all(p.startswith("bert.encoder.") for p in adapter.points)


def test_a_regression_head_and_a_decoders_head_without_bias(tmp_path: Path):
    bert, _ = task_model("bert", labels=1)
    manifest = replace(task_manifest(bert.bert, 32, "regressor"), task="regression")
    wrapped(bert, task_type="SEQ_CLS", target_modules=["query"]).save_pretrained(str(tmp_path / "bert"))
    adapter = read_adapter(tmp_path / "bert", manifest, accept_base=True)
    adapter.validate(manifest)
    assert adapter.tensors["regressor.weight"].shape == (1, 32)
    write_adapter(adapter, tmp_path / "back", prefix="bert", head="classifier")
    theirs = loaded(bert, tmp_path / "back")
    state = {n: p.detach().numpy() for n, p in theirs.named_parameters() if "modules_to_save" in n}
    assert {n.rpartition(".")[2]: p.shape for n, p in state.items()} == {"weight": (1, 32), "bias": (1,)}

    llama, _ = task_model("llama")
    manifest = task_manifest(llama.model, 32)
    wrapped(llama, task_type="SEQ_CLS", target_modules=["q_proj"]).save_pretrained(str(tmp_path / "llama"))
    adapter = read_adapter(tmp_path / "llama", manifest, accept_base=True)
    adapter.validate(manifest)
    assert adapter.tensors["classifier.weight"].shape == (3, 32)
    np.testing.assert_array_equal(adapter.tensors["classifier.bias"], np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("modules", "points", "message"),
    [
        (["a.b.dense"], ["b.dense", "dense"], r"a\.b\.dense may be any of .*b\.dense.*dense"),
        (["dense"], ["a.dense", "b.dense"], r"dense may be any of a\.dense, b\.dense"),
        (["m.x.query", "m.x.key"], ["x.query"], r"no insertion point of this bundle is m\.x\.key \("),
        (["m.x.query", "n.x.key"], ["x.query", "x.key"], r"no insertion point of this bundle is [mn]\.x\.\w+ "),
        (["other"], ["x.query"], r"no insertion point of this bundle is other "),
    ],
)  # fmt: skip
def test_names_that_fit_no_point_or_several_are_refused(tmp_path: Path, modules, points, message):
    manifest = replace(WITHOUT_HEAD, points=tuple(InsertionPoint(p, "MatMul", 4, 4) for p in points))
    write_raw(
        tmp_path, {f"{m}.lora_{x}.weight": np.ones((2, 4) if x == "A" else (4, 2)) for m in modules for x in "AB"}
    )
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path, manifest, accept_base=True)


def write_raw(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> None:
    body = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(body))
    named = {f"base_model.model.{n}": t.astype(np.float32) for n, t in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")


# --- what is refused, by name --------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bias": ({"bias": "all"}, "--methods lora-bias"),
    "factor bias": ({"lora_bias": True}, "lora_bias"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "parameters": ({"target_parameters": ["encoder.layer.0.output.dense.weight"]}, "target_parameters"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    "invocation": ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    "embedding": ({"target_modules": ["query", "word_embeddings"]}, "lora_embedding_A .*embedding"),
    "whole module": ({"modules_to_save": ["pooler"]}, r"pooler\.dense\.weight is a module of the base"),
}


@pytest.mark.parametrize(("extra", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_place_is_refused_by_name(tmp_path: Path, extra: dict[str, Any], message: str):
    model = small_bert()
    wrapped(model, **{"r": 2, "target_modules": ["query"]} | extra).save_pretrained(str(tmp_path))
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path, manifest_of(model), accept_base=True)


OTHERS = {
    "LOHA": peft.LoHaConfig(target_modules=["query"]),
    "LOKR": peft.LoKrConfig(target_modules=["query"]),
    "OFT": peft.OFTConfig(target_modules=["query"], oft_block_size=0, r=4),
}


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_are_refused_by_name(tmp_path: Path, method: str):
    model = small_bert()
    get_peft_model(model, OTHERS[method]).save_pretrained(str(tmp_path))
    with pytest.raises(AdapterError, match=rf"peft_type is '{method}'"):
        read_adapter(tmp_path, manifest_of(model), accept_base=True)


def test_pickles_are_refused_and_say_what_to_do(tmp_path: Path):
    model = wrapped(small_bert(), target_modules=["query"])
    model.save_pretrained(str(tmp_path), safe_serialization=False)
    with pytest.raises(AdapterError, match=r"adapter_model\.bin: a pickle.*safe_serialization=True"):
        read_adapter(tmp_path, manifest_of(small_bert()), accept_base=True)


def test_a_prefix_that_is_no_path_is_refused(tmp_path: Path):
    manifest = manifest_of(small_bert())
    adapter = new_adapter(manifest, LoraConfig(r=1, target_modules=("query",)))
    for prefix in ("../up", "a..b", "bert."):
        with pytest.raises(AdapterError, match="not the path of a module"):
            write_adapter(adapter, tmp_path / "out", prefix=prefix)
    assert not (tmp_path / "out").exists()


# --- any settings ---------------------------------------------------------------------------------------------

NAMES = ("query", "value", "key", "intermediate.dense", "attention.output.dense", "layer.0.output.dense")
PATTERNS = (
    *NAMES,
    r"layer\.0\..*",
    r"^encoder\.layer\.1\..*",
    r"encoder.*(query|dense)",
    ".*",
    "layer.1.attention.self.key",
)
TARGETS = st.one_of(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    st.sampled_from([r".*\.(query|value)", r"encoder\.layer\.\d\.output\.dense", "all-linear", r".*layer\.1.*dense"]),
)


@st.composite
def peft_settings(draw: Any) -> dict[str, Any]:
    targets = draw(TARGETS)
    chosen: dict[str, Any] = {
        "r": draw(st.integers(1, 6)),
        "lora_alpha": draw(st.sampled_from([1, 3, 8, 0.5])),
        "target_modules": targets,
        "use_rslora": draw(st.booleans()),
        "rank_pattern": draw(st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 9), max_size=3)),
        "alpha_pattern": draw(st.dictionaries(st.sampled_from(PATTERNS), st.sampled_from([0.25, 2, 16]), max_size=3)),
        "init_lora_weights": draw(st.sampled_from([True, False, "gaussian", "mica"])),
        "lora_dropout": draw(st.sampled_from([0.0, 0.1])),
    }
    if draw(st.booleans()):
        chosen["exclude_modules"] = draw(st.sampled_from([["key"], r".*layer\.0.*value", ["layer.1.output.dense"]]))
    if isinstance(targets, list) and draw(st.booleans()):
        chosen["layers_to_transform"] = draw(st.sampled_from([0, [1], [0, 1]]))
        chosen["layers_pattern"] = draw(st.sampled_from([None, "layer", ["layer"]]))
    return chosen


IDS = {"input_ids": np.arange(12).reshape(2, 6)}


@settings(max_examples=25)
@given(peft_settings())
@example({"target_modules": ["query", "value"], "alpha_pattern": {"query": 0.25, r"layer\.0\..*": 2}})
@example({"target_modules": ["query", "value"], "rank_pattern": {"query": 1, r"layer\.0\..*": 2}})
def test_any_settings_compute_the_same_on_both_sides(chosen: dict[str, Any]):
    """What PEFT reads from its own file: there patterns are sorted, and another one may match first."""
    model = small_bert()
    manifest = manifest_of(model)
    try:
        theirs = wrapped(model, **chosen)
    except ValueError:  # nothing is left to adapt
        with pytest.raises(ConfigError):
            new_adapter(manifest, ours_of(chosen))
        return
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(f"{folder}/theirs")
        adapter = read_adapter(Path(folder, "theirs"), manifest, accept_base=True)
        try:
            theirs = loaded(model, Path(folder, "theirs"))
        except RuntimeError:  # sizes do not match
            with pytest.raises(AdapterError, match="where its settings say"):
                adapter.validate(manifest)
            return
        adapter.validate(manifest)
        write_adapter(adapter, Path(folder, "ours"))
        back = loaded(model, Path(folder, "ours"))
    wanted = run(theirs, IDS)
    np.testing.assert_allclose(run(with_adapter(model, adapter, manifest), IDS), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(back, IDS), wanted, rtol=1e-5, atol=1e-5)
    if chosen["target_modules"] != "all-linear":  # where PEFT ignores layers and we do not
        assert new_adapter(manifest, ours_of(chosen)).tensors.keys() == adapter.tensors.keys()


def ours_of(chosen: dict[str, Any]) -> LoraConfig:
    known = {k: v for k, v in chosen.items() if k != "init_lora_weights"}
    lists: dict[str, Any] = {k: tuple(v) for k, v in known.items() if isinstance(v, list)}
    return LoraConfig(**known | lists)
