"""EfficientNet-Lite0: an EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeezes and with ReLU6, as
TensorFlow's authors published it for small devices. Its parts are named as in the weights that it reads.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

# expansion, channels, blocks, kernel, stride of the first
BLOCKS = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
STEM, LAST, SIZE = 32, 1280, 224
WEIGHTS = "efficientnet-lite0.pth"


Parts = list[tuple[str, nn.Module]]


def _convolution(name: str, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> Parts:
    """⌈size / stride⌉ places of images of even sides, with the odd pixel of padding behind, as in TensorFlow."""
    before, after = (kernel - stride) // 2, kernel - stride - (kernel - stride) // 2
    uneven: Parts = [(f"{name}_pad", nn.ZeroPad2d((before, after, before, after)))] if before != after else []
    padding = 0 if uneven else before
    return [*uneven, (name, nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False))]


def _norm(name: str, channels: int) -> Parts:
    return [(name, nn.BatchNorm2d(channels, eps=1e-3))]


def _relu(name: str) -> Parts:
    return [(name, nn.ReLU6())]


def _sequence(*parts: Parts) -> nn.Sequential:
    return nn.Sequential(OrderedDict(one for part in parts for one in part))


class Block(nn.Module):
    """1×1 to more channels, a depthwise convolution, 1×1 to few; with the input added where the shapes are the same."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.skips = stride == 1 and channels == out
        wider = [_convolution("_expand_conv", channels, inner, 1), _norm("_bn0", inner), _relu("_relu0")]
        self.parts = _sequence(
            *(wider if expansion != 1 else []),
            _convolution("_depthwise_conv", inner, inner, kernel, stride, inner),
            _norm("_bn1", inner),
            _relu("_relu1"),
            _convolution("_project_conv", inner, out, 1),
            _norm("_bn2", out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.parts(x)
        return x + y if self.skips else y


class Features(nn.Module):
    """The map before the classifier `[N, 1280, height/32, width/32]`, and its mean `[N, 1280]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _sequence(_convolution("_conv_stem", 3, STEM, 3, 2), _norm("_bn0", STEM), _relu("_relu0"))
        blocks: list[nn.Module] = []
        channels = STEM
        for expansion, out, count, kernel, stride in BLOCKS:
            for number in range(count):
                blocks.append(Block(channels, out, kernel, stride if number == 0 else 1, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self.last = _sequence(_convolution("_conv_head", channels, LAST, 1), _norm("_bn1", LAST), _relu("_relu1"))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.last(self._blocks(self.stem(image)))
        return {"features": features, "pooled": features.mean((2, 3))}


def features(folder: Path) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """The network without its classifier, with the weights in `folder`; sample images; their open dimensions."""
    network = Features()
    weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    network.load_state_dict({_name(name): x for name, x in weights.items() if not name.startswith("_fc.")})
    return network, {"image": torch.randn(2, 3, SIZE, SIZE)}, {"image": {0: "batch"}}


def _name(published: str) -> str:
    """The name here of a tensor of the published file."""
    part, _, rest = published.partition(".")
    if part == "_blocks":
        number, _, rest = rest.partition(".")
        return f"_blocks.{number}.parts.{rest}"
    return f"{'stem' if part in ('_conv_stem', '_bn0') else 'last'}.{published}"
