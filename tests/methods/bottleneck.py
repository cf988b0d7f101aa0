"""Bottleneck adapters in torch, as the library Adapters has them after a module (adapters.methods.modeling.Adapter)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from tests.methods.twins import InTorch


class BottleneckInTorch(InTorch):
    """Two linear layers on a module's output, scaled and added to it."""

    def tensors(self, module: Any) -> Mapping[str, torch.Tensor]:
        out = module.out_features
        down, up = (
            torch.nn.Linear(out, self.settings.get("r", out // 16)),
            torch.nn.Linear(self.settings.get("r", out // 16), out),
        )
        return {
            "adapter_down.0.weight": down.weight.data,
            "adapter_down.0.bias": down.bias.data,
            "adapter_up.weight": up.weight.data,
            "adapter_up.bias": up.bias.data,
        }

    def output(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        act = {"relu": functional.relu, "gelu": functional.gelu}[self.settings["non_linearity"]]
        h = act(functional.linear(y, tensors["adapter_down.0.weight"], tensors["adapter_down.0.bias"]))
        up = functional.linear(h, tensors["adapter_up.weight"], tensors["adapter_up.bias"])
        return y + self.settings["scaling"] * up
