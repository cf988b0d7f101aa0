"""Adapters of a task model, whose modules are called `bert.…`, on a bundle of the base, and the other way round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from edgelora import IA3Config, LoraConfig
from edgelora.adapter import read_adapter
from edgelora.errors import AdapterError
from tests.device import tiny
from tests.methods.cases import CASES, Case
from tests.methods.twins import Twin, moved
from tests.methods.world import World


def task_model(twin: Twin) -> Any:
    """A token classifier on the base, with an adapter that has been moved away from its first values."""
    base = tiny.module()
    model: Any = transformers.BertForTokenClassification(base.config)
    model.bert = base
    return moved(twin.attach(model), seed=1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_adapter_of_a_task_model_computes_the_same_here(world: World, case: Case, tmp_path: Path):
    """All biases of a task model are more than its base's: that of the classifier is refused by name."""
    model = task_model(case.twin)
    case.twin.save(model, tmp_path)
    if case.ours.all_biases:
        with pytest.raises(AdapterError, match=r"no insertion point of this bundle is classifier"):
            read_adapter(tmp_path, world.features.bundle.manifest, accept_base=True)
        return
    adapter = read_adapter(tmp_path, world.features.bundle.manifest, accept_base=True)
    expected = world.hidden_in_torch(case.twin.inside(model, "bert"))
    assert np.abs(expected - world.hidden(None)).max() > 1e-2
    np.testing.assert_allclose(world.hidden(adapter), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["lora-patterns", "ia3"])
def test_a_beginning_that_is_missing_is_put_before(world: World, name: str, tmp_path: Path):
    twin = CASES[name].twin
    twin.save(moved(twin.attach(tiny.module())), tmp_path)
    manifest = world.features.bundle.manifest
    there = read_adapter(tmp_path, manifest, accept_base=True)
    longer = replace(manifest, points=tuple(replace(p, id=f"bert.{p.id}") for p in manifest.points))
    adapter = read_adapter(tmp_path, longer, accept_base=True)
    adapter = replace(adapter, base_digest=manifest.base_digest)
    assert adapter.points == tuple(f"bert.{point}" for point in there.points)
    for point in there.points:
        if isinstance(adapter.config, IA3Config) and isinstance(there.config, IA3Config):
            assert adapter.config.is_feedforward(f"bert.{point}") == there.config.is_feedforward(point)
        else:
            assert isinstance(adapter.config, LoraConfig) and isinstance(there.config, LoraConfig)
            assert adapter.config.rank(f"bert.{point}") == there.config.rank(point)
            assert adapter.config.scale(f"bert.{point}") == there.config.scale(point)


def test_two_beginnings_are_none(world: World, tmp_path: Path):
    """A module that is not below the same attribute as the others is named, not guessed at."""
    twin = CASES["lora"].twin
    twin.save(task_model(twin), tmp_path)
    manifest = world.features.bundle.manifest
    shorter = replace(manifest, points=manifest.points[1:])
    with pytest.raises(AdapterError, match=r"no insertion point of this bundle is bert\.encoder"):
        read_adapter(tmp_path, shorter, accept_base=True).validate(shorter)
