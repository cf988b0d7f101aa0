"""Layer-norm tuning of RMS normalizations, which an exporter writes out as a group of nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import torch

from edgelora import Bundle
from edgelora.adapter import read_adapter
from edgelora.check import check
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import module_source
from tests.methods.twins import moved


class Rms(torch.nn.Module):
    """As Llama's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.last = Rms(6), torch.nn.Linear(6, 8), Rms(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.up(self.norm(x))))


def test_pefts_adapter_computes_the_same_here(tmp_path: Path):
    torch.manual_seed(0)
    module = Small().eval()
    source = module_source(module, {"x": torch.randn(2, 3, 6)}, "rms", "torchscript", outputs=["y"])
    options = ConvertOptions(task="feature-extraction", target_modules=("up",), methods=("layer-norm",))
    convert(source, tmp_path / "rms.edgelora", options)
    bundle = Bundle.open(tmp_path / "rms.edgelora")
    points = bundle.manifest.points_in("layer-norm")
    assert [(p.id, p.op, p.bias) for p in points] == [
        ("norm", "RMSNormalization", False),
        ("last", "RMSNormalization", False),
    ]
    assert check(bundle).passed
    model = moved(peft.get_peft_model(module, peft.LNTuningConfig(target_modules=["norm", "last"])))
    model.save_pretrained(str(tmp_path / "peft"))
    adapter = read_adapter(tmp_path / "peft", bundle.manifest, accept_base=True)
    x = torch.randn(2, 3, 6)
    made = bundle.forward_in("layer-norm").run({"x": x.numpy(), **bundle.feeds(adapter)})["y"]
    with torch.no_grad():
        np.testing.assert_allclose(made, model(x).numpy(), rtol=0, atol=1e-5)
