"""LoRA at what a recurrent layer makes of its input, against torch: the same outputs and gradients as W + (A·B')ᵀ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelora.adapter import absent_adapter, new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, ConversionError
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.interop.merging import merge
from tests.convert.bundles import assert_checked, relative

pytest.importorskip("torch")

import torch

from edgelora_tools.sources.torch_export import module_source

TIME, MELS, HIDDEN, RANK = 6, 5, 4, 3
ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}  # torch's gates in the order of ONNX


class Encoder(torch.nn.Module):
    """Two layers both ways, then a linear one, of the last step."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.layers = getattr(torch.nn, op)(MELS, HIDDEN, 2, batch_first=True, bidirectional=True)
        self.linear = torch.nn.Linear(2 * HIDDEN, 3)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        return self.linear(self.layers(mels)[0][:, -1])


@pytest.fixture(scope="module", params=ORDER)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Bundle]:
    torch.manual_seed(0)
    module, path = Encoder(request.param), tmp_path_factory.mktemp("recurrent") / "out.edgelora"
    source = module_source(module, {"mels": torch.randn(2, TIME, MELS)}, "encoder")
    convert(source, path, ConvertOptions(task="feature-extraction", target_modules=("layers", "layers_2", "linear")))
    return request.param, module, Bundle.open(path)


def adapters(bundle: Bundle) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        name: (rng.standard_normal(shape) * 0.4).astype(np.float32)
        for point in bundle.manifest.points
        for name, shape in ((point.input_a, point.shape_a(RANK)), (point.input_b, point.shape_b(RANK)))
    }


def adapted(op: str, module: Any, x: np.ndarray, tensors: dict[str, np.ndarray], c: np.ndarray):
    """The module's outputs with W + (A·B)ᵀ, and the gradients of Σ c·y."""
    given = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in tensors.items()}
    of = Encoder(op).double()
    of.load_state_dict(module.state_dict())
    values: dict[str, torch.Tensor] = {name: p.detach() for name, p in of.named_parameters()}
    for layer, point in enumerate(("layers", "layers_2")):
        product = (given[f"{point}.lora_A"] @ given[f"{point}.lora_B"]).T
        for direction, part in zip(("", "_reverse"), product.chunk(2), strict=True):
            gates = part.chunk(len(ORDER[op]))
            back = torch.cat([gates[ORDER[op].index(i)] for i in range(len(gates))])
            name = f"layers.weight_ih_l{layer}{direction}"
            values[name] = values[name] + back
    values["linear.weight"] = values["linear.weight"] + (given["linear.lora_A"] @ given["linear.lora_B"]).T
    y = torch.func.functional_call(of, values, (torch.tensor(x, dtype=torch.float64),))
    (y * torch.tensor(c)).sum().backward()
    return y.detach().numpy(), {name: np.asarray(v.grad) for name, v in given.items()}


def test_outputs_and_gradients_are_torchs(made):
    op, module, bundle = made
    assert [p.id for p in bundle.manifest.points] == ["layers", "layers_2", "linear"]
    x = np.random.default_rng(2).standard_normal((3, TIME, MELS)).astype(np.float32)
    (output,) = bundle.forward.outputs
    c, tensors = np.random.default_rng(3).standard_normal((3, 3)).astype(np.float32), adapters(bundle)
    y, gradients = adapted(op, module, x, tensors, c)
    assert relative(bundle.forward.run({"mels": x, **tensors})[output], y) < 1e-5
    record = bundle.training("cotangent", dropout=False)
    found = bundle.graph(record.file).run({"mels": x, **tensors, f"cotangent.{output}": c})
    for name, gradient in gradients.items():
        assert relative(found[f"grad.{name}"], gradient) < 1e-4, name


def test_without_adapter_it_is_the_source(made):
    _, module, bundle = made
    x = np.random.default_rng(4).standard_normal((5, TIME, MELS)).astype(np.float32)
    (y,) = bundle.forward.run({"mels": x, **absent_adapter(bundle.manifest)}).values()
    assert relative(y, module(torch.tensor(x)).detach().numpy()) < 1e-5
    assert_checked(bundle)


def test_what_cannot_be_is_refused(made, tmp_path: Path):
    _, module, bundle = made
    plain = LoraConfig(r=2, lora_alpha=2, target_modules=("linear",))
    merge(bundle, new_adapter(bundle.manifest, plain, rng=np.random.default_rng(0)))
    everywhere = new_adapter(bundle.manifest, LoraConfig(r=2, lora_alpha=2), rng=np.random.default_rng(0))
    with pytest.raises(AdapterError, match=r"recurrent layers \(layers, layers_2\): it cannot be merged"):
        merge(bundle, everywhere)
    source = module_source(module, {"mels": torch.randn(2, TIME, MELS)}, "encoder")
    chosen = ConvertOptions(task="feature-extraction", target_modules=("layers", "linear"), methods=("ia3",))
    with pytest.raises(ConversionError, match=r"recurrent layers \(layers\) take LoRA adapters alone"):
        convert(source, tmp_path / "out.edgelora", chosen)
