"""Whole models, exported by both exporters: our gradients against torch autograd through PEFT."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgelora.bundle import Bundle
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import EXPORTERS
from tests import families

RANK, ALPHA = 4, 8
TOLERANCE = 1e-4


def to_bundle(family, exporter, folder, attention="eager"):
    source = families.source(family, exporter, attention)
    assert source.original is not None
    chosen = ConvertOptions(task="feature-extraction", output="last_hidden_state", target_modules="all-linear")
    path = folder / f"{family}-{exporter}.edgelora"
    convert(source, path, chosen)
    return source.original.module, source.original.extra, Bundle.open(path)


def random_adapter(points, rng):
    tensors = {}
    for point in points:
        tensors[point.input_a] = rng.standard_normal((point.in_features, RANK)).astype(np.float32) * np.float32(0.2)
        tensors[point.input_b] = rng.standard_normal((RANK, point.out_features)).astype(np.float32) * np.float32(0.2)
    return tensors


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("family", list(families.CONFIGS))
def test_gradients_equal_torch(family, exporter, tmp_path):
    compare(*to_bundle(family, exporter, tmp_path), family)


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_gradients_equal_torch_with_sdpa(family, tmp_path):
    compare(*to_bundle(family, "dynamo", tmp_path, "sdpa"), family)


def compare(module, extra, bundle, family):
    manifest, rng = bundle.manifest, np.random.default_rng(1)
    points = [point.id for point in manifest.points]
    adapter, scale = random_adapter(manifest.points, rng), ALPHA / RANK
    inputs = families.sample(family, rows=3, length=7, seed=2)  # not the sizes of the export
    wrapped = families.peft_model(module, adapter, points, ALPHA)
    output = wrapped(**{k: torch.from_numpy(v) for k, v in inputs.items()}, **extra).last_hidden_state
    cotangent = rng.standard_normal(output.shape).astype(np.float32)
    (output * torch.from_numpy(cotangent)).sum().backward()
    expected = families.peft_gradients(wrapped, points)

    fed = {name: x * np.float32(scale) if name.endswith("lora_B") else x for name, x in adapter.items()}
    ours_output = bundle.forward.run({**inputs, **fed})["last_hidden_state"]
    assert relative(ours_output, output.detach().numpy()) < 1e-5
    record = bundle.training("cotangent", dropout=False)
    assert set(record.points) == set(points)
    grads = bundle.graph(record.file).run({**inputs, **fed, "cotangent.last_hidden_state": cotangent})
    for name, wanted in expected.items():
        got = grads[f"grad.{name}"] * (np.float32(scale) if name.endswith("lora_B") else 1)
        assert relative(got, wanted) < TOLERANCE, name


def relative(got, wanted):
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
