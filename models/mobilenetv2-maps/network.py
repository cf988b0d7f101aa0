"""MobileNetV2's maps of several strides beside each other, for what has a place in the picture (hypercolumns,
arXiv:1411.5752)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from edgelora_tools import recipes

FINE, COARSE = (1, 3, 6, 13), (6, 13)
"""The blocks whose maps are taken: of strides 2, 4, 8 and 16, with 16, 24, 32 and 96 channels."""


class Maps(nn.Module):
    """`fine` `[N, 168, ⌈height/4⌉, ⌈width/4⌉]`, all of the maps at the size of that of stride 4, and `coarse` `[N, 128,
    ⌈height/8⌉, ⌈width/8⌉]`, those of strides 8 and 16 at the size of the first."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(features)[: max(FINE) + 1])

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {}
        for number, block in enumerate(self.features):
            image = block(image)
            maps[number] = image
        return {
            "fine": _joined([maps[i] for i in FINE], maps[3]),
            "coarse": _joined([maps[i] for i in COARSE], maps[6]),
        }


def _joined(maps: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The maps at the size of one of them, channels one after the other."""
    size = like.shape[2:]
    return torch.cat(
        [x if x is like else F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps], 1
    )


def maps(folder: Path) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """The network with the weights in `folder`; a sample picture; its open dimensions."""
    mobilenet = recipes.network("mobilenetv2")
    network = mobilenet.MobileNetV2()
    weights = torch.load(folder / mobilenet.WEIGHTS, map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    axes = {0: "batch", 2: "height", 3: "width"}
    return Maps(network.features), {"image": torch.randn(2, 3, 128, 128)}, {"image": axes}
