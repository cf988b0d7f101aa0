"""Every method and the formats: the names of a task model, ONNX Runtime's files, plain models, combinations."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from edgelora.adapter import write_adapter
from edgelora.combining import combine
from edgelora.errors import AdapterError, ConfigError
from edgelora.manifest import LORA_GRAPHS
from edgelora.onnx_adapter import read_onnx_adapter, write_onnx_adapter
from tests.device import tiny
from tests.methods.cases import CASES, Case
from tests.methods.world import World

ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@ALL
def test_export_under_a_prefix_computes_the_same_in_a_task_model(world: World, case: Case, tmp_path: Path):
    adapter = world.adapter(case.ours)
    write_adapter(adapter, tmp_path, prefix="bert")
    base = tiny.module()
    model: Any = transformers.BertForTokenClassification(base.config)
    model.bert = copy.deepcopy(base)
    adapted = case.twin.load(model, tmp_path)
    expected = world.hidden_in_torch(case.twin.inside(adapted, "bert"))
    np.testing.assert_allclose(world.hidden(adapter), expected, rtol=0, atol=1e-5)


@ALL
def test_what_runs_in_the_inference_graph_goes_into_files_for_it(world: World, case: Case, tmp_path: Path):
    adapter, bundle = world.adapter(case.ours), world.features.bundle
    if adapter.method.graphs != LORA_GRAPHS:
        with pytest.raises(AdapterError, match=f"a {adapter.method.graphs} adapter runs in graphs of its own"):
            write_onnx_adapter(adapter, bundle.manifest, tmp_path / "a.onnx_adapter")
        assert not list(tmp_path.iterdir())
        return
    write_onnx_adapter(adapter, bundle.manifest, tmp_path / "a.onnx_adapter")
    back = read_onnx_adapter(tmp_path / "a.onnx_adapter", bundle.manifest)
    np.testing.assert_array_equal(world.hidden(back), world.hidden(adapter))


@ALL
def test_lora_alone_is_combined(world: World, case: Case):
    adapters = {"lora": world.adapter(CASES["lora"].ours), "other": world.adapter(case.ours, seed=1)}
    if case.name in ("lora", "lora-patterns", "rslora"):
        assert combine(adapters, [0.5, 0.5], "cat").points == adapters["lora"].points
    else:
        with pytest.raises(ConfigError, match=r"LoRA adapters alone can be combined, and other \([\w-]+\)"):
            combine(adapters, [0.5, 0.5], "cat")
