"""FastestDet, a detector of 0.24 M parameters for COCO's 80 classes, with the names of its published weights.

A ShuffleNetV2 (arXiv:1807.11164) of three scales is brought to the middle one's map, with a cell for every 16 × 16
pixels, and three branches read it: objectness, box and classes (github.com/dog-qiuqiu/FastestDet, BSD-3).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

WEIGHTS = "FastestDet.pth"
SIZE = 352  # pixels of the input's sides; any multiple of 32 serves


class Shuffle(nn.Module):
    """A unit of ShuffleNetV2: half of the channels pass it unchanged, or with stride 2 both halves are computed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 2
        made = outputs - inputs
        self.stride = stride
        self.branch_main = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.Conv2d(middle, made, 1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                nn.Conv2d(inputs, inputs, 1, bias=False),
                nn.BatchNorm2d(inputs),
                nn.ReLU(),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        even, odd = x.unflatten(1, (-1, 2)).unbind(2)
        return torch.cat((even, self.branch_main(odd)), 1)


class ShuffleNetV2(nn.Module):
    """The maps of three stages, with a cell for every 8, 16 and 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2, self.stage3, self.stage4 = _stage(24, 48, 4), _stage(48, 96, 8), _stage(96, 192, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stage2(self.maxpool(self.first_conv(x)))
        middle = self.stage3(fine)
        return fine, middle, self.stage4(middle)


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    rest = [Shuffle(outputs // 2, outputs, 1) for _ in range(units - 1)]
    return nn.Sequential(Shuffle(inputs, outputs, 2), *rest)


def _depthwise(channels: int, times: int = 1) -> list[nn.Module]:
    """So many 5 × 5 convolutions of each channel by itself."""
    made: list[nn.Module] = []
    for _ in range(times):
        made += [nn.Conv2d(channels, channels, 5, 1, 2, groups=channels, bias=False), nn.BatchNorm2d(channels)]
        made += [nn.ReLU()]
    return made


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]


class Dense(nn.Module):
    """A convolution of 1 × 1, under the name that the published weights have for it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*_pointwise(inputs, outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x)


class Pyramid(nn.Module):
    """Fields of view of 5, 9 and 13 cells beside each other."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv1x1 = Dense(inputs, outputs)
        self.S1 = nn.Sequential(*_depthwise(outputs, 1))
        self.S2 = nn.Sequential(*_depthwise(outputs, 2))
        self.S3 = nn.Sequential(*_depthwise(outputs, 3))
        self.output = nn.Sequential(*_pointwise(3 * outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return torch.relu(x + self.output(torch.cat((self.S1(x), self.S2(x), self.S3(x)), 1)))


class Branch(nn.Module):
    """One of the detector's outputs; `[:3]` of it makes the last map before that."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*_depthwise(inputs), *_pointwise(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5x5(x)


class Branches(nn.Module):
    """`[N, 5 + classes, h, w]`: objectness as a probability, the box's four numbers, probabilities of the classes."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv1x1 = Dense(inputs, inputs)
        self.obj_layers, self.reg_layers = Branch(inputs, 1), Branch(inputs, 4)
        self.cls_layers = Branch(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x)
        objectness, classes = self.obj_layers(x).sigmoid(), self.cls_layers(x).softmax(1)
        return torch.cat((objectness, self.reg_layers(x), classes), 1)

    def maps(self, x: Tensor) -> Tensor:
        """What the three branches see last, beside each other: `[N, 288, h, w]`."""
        x = self.conv1x1(x)
        return torch.cat([one.conv5x5[:3](x) for one in (self.obj_layers, self.reg_layers, self.cls_layers)], 1)


class FastestDet(nn.Module):
    """The detector: pictures `[N, 3, 16h, 16w]`, blue first, in 0 … 1, to `[N, 5 + classes, h, w]`."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.backbone = ShuffleNetV2()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.avg_pool = nn.AvgPool2d(3, 2, 1)
        self.SPP = Pyramid(48 + 96 + 192, 96)
        self.detect_head = Branches(96, classes)

    def features(self, images: Tensor) -> Tensor:
        fine, middle, coarse = self.backbone(images)
        return self.SPP(torch.cat((self.avg_pool(fine), middle, self.upsample(coarse)), 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.detect_head(self.features(images))


class Maps(nn.Module):
    """The detector without its outputs, for a new head: pictures to `[N, 288, h, w]`."""

    def __init__(self, network: FastestDet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.detect_head.maps(self.network.features(images))


Made = tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]


def detector(folder: Path, size: int = SIZE) -> Made:
    """The network with the weights in `folder`, in evaluation mode; sample pictures of `size` pixels a side; their open
    dimensions.
    """
    network = FastestDet()
    network.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    return network.eval(), {"images": torch.rand(2, 3, size, size)}, {"images": {0: "batch"}}


def maps(folder: Path, size: int = SIZE) -> Made:
    """As `detector`, without the detector's outputs."""
    network, inputs, axes = detector(folder, size)
    assert isinstance(network, FastestDet)
    return Maps(network), inputs, axes
