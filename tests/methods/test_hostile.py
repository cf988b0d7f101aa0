"""Files of every method that are damaged or lie: nothing but AdapterError, before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgelora import Bundle, LoraConfig, VeraConfig
from edgelora.adapter import absent_adapter, new_adapter, read_adapter, write_adapter
from edgelora.errors import AdapterError, BundleError, ConfigError, EdgeLoraError
from edgelora.manifest import Manifest
from tests.methods.cases import CASES
from tests.methods.world import LABELS, TEXTS, World

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
SETTINGS = (
    "r", "d_initial", "vera_dropout", "projection_prng_key", "feedforward_modules", "target_modules", "use_dora",
    "exclude_modules", "layers_to_transform", "modules_to_save", "rank_pattern", "bias", "peft_type",
    "non_linearity", "scaling", "init_lora_weights",
    "num_virtual_tokens", "num_transformer_submodules", "token_dim",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("prompt", "prefix")])
def test_an_adapter_at_no_point_is_the_base_with_a_head(world: World, name: str):
    model, config = world.classifier, replace(CASES[name].ours, target_modules=())
    if getattr(config, "feedforward_modules", None) is not None:
        config = replace(config, feedforward_modules=())
    adapter = new_adapter(model.bundle.manifest, config, LABELS, rng=np.random.default_rng(0), base=model.bundle)
    head = world.adapter(LoraConfig(r=1, target_modules=()), head=True)
    both = (adapter.with_tensors({**adapter.tensors, **head.tensors}), head)
    got, wanted = (np.asarray(model.outputs(list(TEXTS), one)["logits"], np.float32) for one in both)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("number", [10**400, 1e300, float("nan"), "x"])
def test_a_first_value_that_float32_does_not_hold_is_refused(number: Any):
    with pytest.raises(ConfigError, match="d_initial must be a number"):
        VeraConfig(d_initial=number)


@pytest.mark.parametrize("name", CASES)
def test_any_setting_is_read_or_refused(world: World, name: str, tmp_path: Path):
    """In PEFT's file, with and without our record beside it."""
    adapter = world.adapter(CASES[name].ours)
    write_adapter(adapter, tmp_path)
    path, record = tmp_path / "adapter_config.json", tmp_path / "edgelora.json"
    whole, kept = json.loads(path.read_text()), record.read_text()
    manifest = world.features.bundle.manifest

    @given(st.sampled_from(SETTINGS), JSON | st.sampled_from(["pissa", "gelu", "pissa_niter_2"]), st.booleans())
    def tried(setting: str, value: Any, alone: bool) -> None:
        path.write_text(json.dumps({**whole, setting: value}))
        record.unlink(missing_ok=True)
        if not alone:
            record.write_text(kept)
        try:
            read = read_adapter(tmp_path, manifest, accept_base=True)
            read.validate(manifest)
        except AdapterError:
            return
        world.features.bundle.feeds(read)

    tried()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("change", ["transposed", "longer", "flat", "left out", "renamed", "infinite"])
def test_tensors_that_do_not_fit_are_refused(world: World, name: str, change: str, tmp_path: Path):
    adapter, manifest = world.adapter(CASES[name].ours), world.features.bundle.manifest
    if change == "left out" and (len(adapter.method.disk) == 1 or adapter.config.all_biases):
        return  # the adapter does not join the point then
    write_adapter(adapter, tmp_path)
    (tmp_path / "edgelora.json").unlink()
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    for key in list(whole)[:1] + list(whole)[-1:]:
        tensor = whole[key]
        changed: dict[str, np.ndarray] = {
            "transposed": {key: np.ascontiguousarray(tensor[None].T)},
            "longer": {key: np.concatenate([tensor, tensor], axis=-1)},
            "flat": {key: np.float32(1) * tensor[..., :1]},
            "left out": {},
            "renamed": {f"{key}.more": tensor},
            "infinite": {key: np.full_like(tensor, np.inf)},
        }[change]
        save_file({**{k: t for k, t in whole.items() if k != key}, **changed}, path)
        with pytest.raises(AdapterError):
            read_adapter(tmp_path, manifest, accept_base=True).validate(manifest)


def layer_norm(body: dict[str, Any]) -> dict[str, Any]:
    return body["methods"]["layer-norm"]


NONSENSE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no values": lambda b: b.update(values=None),
    "values that no file is": lambda b: b.update(values="elsewhere.onnx"),
    "values of a type": lambda b: b.update(values=3),
    "a value without a size": lambda b: layer_norm(b)["inputs"][0].update(shape=["r"]),
    "neutral is a text": lambda b: layer_norm(b)["inputs"][0].update(neutral="x"),
    "a place twice": lambda b: layer_norm(b)["points"].append(layer_norm(b)["points"][0]),
    "a place without features": lambda b: layer_norm(b)["points"][0].update(out_features=0),
    "a place of an enormous size": lambda b: layer_norm(b)["points"][0].update(out_features=10**12),
    "bias is a number": lambda b: layer_norm(b)["points"][0].update(bias=1),
    "places are no list": lambda b: layer_norm(b).update(points={}),
}
OTHER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "values of another graph": lambda b: b.update(values=b["forward"]),
    "values are no graph": lambda b: b.update(values="weights.bin"),
    "another size": lambda b: [point.update(out_features=31) for point in layer_norm(b)["points"]],
    "no bias": lambda b: [point.update(bias=False) for point in layer_norm(b)["points"]],
    "other places": lambda b: [point.update(id="elsewhere" + point["id"]) for point in layer_norm(b)["points"]],
    "other inputs": lambda b: [x.update(name=f"elsewhere.{x['name']}") for x in layer_norm(b)["inputs"]],
    "a set's places are the bundle's": lambda b: layer_norm(b).update(points=None),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_set_that_no_bundle_means_is_refused(world: World, name: str):
    body = json.loads(world.features.bundle.manifest.to_json())
    NONSENSE[name](body)
    with pytest.raises(BundleError, match=r"malformed|not list"):
        Manifest.from_json(json.dumps(body), "bundle.json")


@pytest.mark.parametrize("name", OTHER)
def test_a_set_that_does_not_fit_its_graphs_is_a_documented_error(world: World, name: str):
    """Whether values are asked for, or an adapter is made, or one is used."""
    bundle = world.features.bundle
    body = json.loads(bundle.manifest.to_json())
    OTHER[name](body)
    spoiled = Bundle(bundle.path, Manifest.from_json(json.dumps(body), "bundle.json"), bundle.settings)
    inputs = world.features.encode(list(TEXTS))
    adapter = world.adapter(CASES["layer-norm"].ours)
    failures = 0
    for act in (
        lambda: absent_adapter(spoiled.manifest, "layer-norm", spoiled),
        lambda: new_adapter(spoiled.manifest, CASES["layer-norm"].ours, base=spoiled).validate(spoiled.manifest),
        lambda: adapter.validate(spoiled.manifest),
        lambda: spoiled.forward_in("layer-norm").run({**inputs, **spoiled.feeds(adapter)}),
    ):
        try:
            act()
        except EdgeLoraError:
            failures += 1
    assert failures
