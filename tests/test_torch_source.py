"""A torch module as a source: the module is left as it was, and `run` is the module's own inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.parity import parity_errors, parity_samples
from edgelora_tools.certify.architecture import TRAINS, certify
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import EXPORTERS, module_source


class Dropping(torch.nn.Module):
    """A module whose training mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(self.linear(x), 0.5, self.training)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_source_runs_without_dropout_after_the_export(exporter: str):
    module = Dropping()
    x = torch.ones(2, 8)
    source = module_source(module, {"x": x}, "dropping", exporter)
    assert not module.training
    (ran,) = source.run({"x": x.numpy()}).values()
    np.testing.assert_allclose(ran, module.linear(x).detach().numpy(), rtol=1e-6)


class Scalars(torch.nn.Module):
    """A module with a weight of no axes, and an output of none."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = torch.nn.Linear(8, 8), torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.linear(x)
        return y, y.max() * self.scale, self.scale * 2


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_has_no_axes_keeps_none(exporter: str, tmp_path: Path):
    source = module_source(Scalars(), {"x": torch.randn(2, 8)}, "scalars", exporter)
    convert(source, tmp_path / "out.edgelora", ConvertOptions(task="feature-extraction"))
    bundle = Bundle.open(tmp_path / "out.edgelora")
    samples = parity_samples(bundle)
    assert max(parity_errors(bundle, samples, np.random.default_rng(0)).values()) < 1e-5
    for _, outputs in samples:
        assert sorted(y.ndim for y in outputs.values()) == [0, 0, 2]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_normalization_stays_apart_from_its_convolution(exporter: str):
    """An adapter of the convolution stands between the two, as PEFT's does."""
    convolution, normalization = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    torch.nn.init.constant_(normalization.weight, 3.0)
    module = torch.nn.Sequential(convolution, normalization)
    source = module_source(module, {"input": torch.randn(2, 3, 8, 8)}, "normalized", exporter)
    assert [node.op_type for node in source.model.graph].count("BatchNormalization") == 1
    weights = [w.const_value for w in source.model.graph.initializers.values() if w.const_value is not None]
    (kernel,) = (w.numpy() for w in weights if w.shape.rank() == 4)
    np.testing.assert_array_equal(kernel, convolution.weight.detach().numpy())


class Counting(torch.nn.Module):
    """Its loss has no axes, and passes a function that torch has no derivative of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return (y**2).mean() + (y // 50.0).sum()


def counting() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return Counting(), {"x": torch.randn(2, 6)}


def test_what_torch_cannot_differentiate_is_held_against_differences():
    found = certify("tests.test_torch_source:counting", "dynamo")
    assert (found.verdict, found.compared, found.by_torch) == (TRAINS, 1, 0)


class Deviations(torch.nn.Module):
    """The deviation of channels of which some are zero throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = torch.arange(8) < 3
        return torch.where(channels, 0.0 * self.linear(x), self.linear(x)).std(1)


def deviations() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return Deviations(), {"x": torch.randn(2, 5, 6)}


def test_a_deviation_of_zero_has_a_gradient_of_zero():
    found = certify("tests.test_torch_source:deviations", "dynamo")
    assert (found.verdict, found.compared, found.by_torch) == (TRAINS, 1, 1)


def test_a_decoder_is_exported_without_its_cache():
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, use_cache=True
    )
    tokens = torch.arange(10).view(2, 5)
    source = module_source(transformers.LlamaModel(config), {"input_ids": tokens}, "llama")
    assert len(source.model.graph.outputs) == 1
    (made,) = source.run({"input_ids": tokens.numpy()}).values()
    assert made.shape == (2, 5, 16)


class Twice(torch.nn.Module):
    """A module that returns a tensor twice, once within a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        y = self.linear(x)
        return y, (torch.tanh(y), y)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_tensor_that_is_returned_twice_has_two_names(exporter: str, tmp_path):
    x = torch.randn(2, 8)
    source = module_source(Twice(), {"x": x}, "twice", exporter)
    ran = list(source.run({"x": x.numpy()}).values())
    assert len(ran) == 3
    manifest = convert(source, tmp_path / "bundle", ConvertOptions(task="feature-extraction"))
    bundle = Bundle.open(tmp_path / "bundle")
    made = bundle.forward.run({"x": x.numpy(), **absent_adapter(manifest)})
    for got, wanted in zip(made.values(), ran, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def experts() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
    )  # fmt: skip
    return transformers.Qwen3MoeModel(config), {"input_ids": torch.arange(10).view(2, 5)}


def test_experts_are_exported_as_transformers_builds_them():
    found = certify("tests.test_torch_source:experts", "dynamo")
    assert found.verdict == TRAINS
