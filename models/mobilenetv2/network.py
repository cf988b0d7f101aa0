"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), its parts named as in torchvision, whose weights it reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

# expansion, channels, blocks, stride of the first: table 2 of the paper
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST = 32, 1280
WEIGHTS = "mobilenet_v2.pth"


def convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6; a stride of 1 keeps the size."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1×1 to more channels, a depthwise 3×3, 1×1 to few; with the input added where the shapes are the same."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.skips = stride == 1 and channels == out
        self.conv = nn.Sequential(
            *([convolution(channels, inner, 1)] if expansion != 1 else []),
            convolution(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return x + y if self.skips else y


class MobileNetV2(nn.Module):
    """Logits `[N, classes]` of images `[N, 3, height, width]`."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [convolution(3, STEM, 3, 2)]
        channels = STEM
        for expansion, out, count, stride in BLOCKS:
            for number in range(count):
                features.append(InvertedResidual(channels, out, stride if number == 0 else 1, expansion))
                channels = out
        features.append(convolution(channels, LAST, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


class Features(nn.Module):
    """What the classifier would see: the map `[N, 1280, ⌈height/32⌉, ⌈width/32⌉]`, and its mean `[N, 1280]`."""

    def __init__(self, network: MobileNetV2) -> None:
        super().__init__()
        self.features = network.features

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(image)
        return {"features": features, "pooled": features.mean((2, 3))}


def features(folder: Path) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """The network without its classifier, with the weights in `folder`; sample images; their open dimensions."""
    network = MobileNetV2()
    network.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    axes = {0: "batch", 2: "height", 3: "width"}
    return Features(network), {"image": torch.randn(2, 3, 224, 224)}, {"image": axes}
