"""Transformers that ONNX Runtime's own optimizer has fused: they convert, agree with the fused model, and train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from onnxruntime.transformers.optimizer import optimize_model

from tests import families
from tests.convert.bundles import assert_checked, assert_same_outputs, to_bundle

WANTED = {
    "bert": {"Attention", "EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu"},
    "gpt2": {"SkipLayerNormalization", "FastGelu"},
    "llama": {"SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization"},
}


class Hidden(torch.nn.Module):
    """The last hidden states, inputs by position."""

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)), use_cache=False).last_hidden_state


def optimized(family: str, folder: Path) -> Path:
    """The family's small model, exported by TorchScript at opset 14 (Llama: 17) and optimized."""
    sample = families.sample(family)
    names = list(sample)
    path = folder / f"{family}.onnx"
    torch.onnx.export(
        Hidden(families.build(family), names).eval(),
        cast("Any", tuple(torch.from_numpy(x) for x in sample.values())),
        path,
        dynamo=False,
        input_names=names,
        output_names=["y"],
        opset_version=17 if family == "llama" else 14,
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in [*names, "y"]},
    )
    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    kind, level = ("bert", 0) if family == "bert" else ("gpt2", int(family == "llama"))
    fused = optimize_model(str(path), model_type=kind, num_heads=4, hidden_size=32, opt_level=level)
    made = folder / f"{family}-fused.onnx"
    fused.save_model_to_file(str(made))
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", WANTED)
def test_a_fused_transformer_trains(family, tmp_path):
    source = optimized(family, tmp_path)
    assert {node.op_type for node in onnx.load(source).graph.node} >= WANTED[family]
    bundle = to_bundle(source, tmp_path)
    assert not bundle.manifest.lost
    for rows, length in ((1, 1), (3, 7), (2, 12)):
        assert_same_outputs(bundle, source, families.sample(family, rows, length))
    assert_checked(bundle)
    if family == "bert":
        ids = [point.id for point in bundle.manifest.points]
        assert [i for i in ids if i.endswith("query_key_value")] == [f"Attention_{i}.query_key_value" for i in (0, 1)]
