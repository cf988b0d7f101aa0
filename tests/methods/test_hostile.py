"""Files of every method that are damaged or lie: nothing but AdapterError, before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgelora.adapter import read_adapter, write_adapter
from edgelora.errors import AdapterError
from tests.methods.cases import CASES
from tests.methods.world import World

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
SETTINGS = (
    "r", "d_initial", "vera_dropout", "projection_prng_key", "feedforward_modules", "target_modules", "use_dora",
    "exclude_modules", "layers_to_transform", "modules_to_save", "rank_pattern", "bias", "peft_type",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_any_setting_is_read_or_refused(world: World, name: str, tmp_path: Path):
    """In PEFT's file, with and without our record beside it."""
    adapter = world.adapter(CASES[name].ours)
    write_adapter(adapter, tmp_path)
    path, record = tmp_path / "adapter_config.json", tmp_path / "edgelora.json"
    whole, kept = json.loads(path.read_text()), record.read_text()
    manifest = world.features.bundle.manifest

    @given(st.sampled_from(SETTINGS), JSON, st.booleans())
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
    if change == "left out" and len(adapter.method.disk) == 1:
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
