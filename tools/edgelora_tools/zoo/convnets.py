"""Networks for images written by hand in torch, as people write their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgelora_tools.zoo.samples import Made, build, floats


def _images(module: nn.Module, size: int = 32, channels: int = 3) -> Made:
    return floats(module, channels, size, size, name="image")


def _conv(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None) -> nn.Module:
    """Convolution, batch normalization, activation."""
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), act or nn.ReLU())


class _Residual(nn.Module):
    """x + f(x), with `shortcut` for x where the shape changes."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.last = body, shortcut or nn.Identity(), last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shortcut(x) + self.body(x))


class _Concat(nn.Module):
    """The branches' results side by side, the input itself among them if `keep`."""

    def __init__(self, branches: Sequence[nn.Module], keep: bool = False) -> None:
        super().__init__()
        self.branches, self.keep = nn.ModuleList(branches), keep

    def forward(self, x: Tensor) -> Tensor:
        made = [branch(x) for branch in self.branches]
        return torch.cat([x, *made] if self.keep else made, 1)


class _Pooled(nn.Module):
    """Features, global average, a linear classifier."""

    def __init__(self, features: nn.Module, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.features, self.classifier = features, nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(image), 1).flatten(1))


def lenet() -> Made:
    """LeNet-5 (LeCun et al. 1998)."""

    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

        def forward(self, image: Tensor) -> Tensor:
            x = F.max_pool2d(torch.tanh(self.conv1(image)), 2)
            x = F.max_pool2d(torch.tanh(self.conv2(x)), 2).flatten(1)
            return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))

    return _images(build(LeNet), 28, 1)


def alexnet_lrn() -> Made:
    """AlexNet's pattern, with local response normalization (Krizhevsky et al. 2012)."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2),
            nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),
            nn.Linear(24 * 9, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5),
        )  # fmt: skip

    module, inputs, axes = _images(build(make))
    return module, {"input": inputs["image"]}, {"input": axes["image"]}


def vgg() -> Made:
    """VGG, arXiv:1409.1556."""

    def make() -> nn.Module:
        stages = [nn.Sequential(_conv(i, o), _conv(o, o), nn.MaxPool2d(2)) for i, o in ((3, 8), (8, 16), (16, 24))]
        return _Pooled(nn.Sequential(*stages), 24)

    return _images(build(make))


def resnet18() -> Made:
    """ResNet of basic blocks, arXiv:1512.03385."""

    def block(i: int, o: int, stride: int) -> nn.Module:
        body = nn.Sequential(_conv(i, o, 3, stride), _conv(o, o, act=nn.Identity()))
        shortcut = None if i == o and stride == 1 else _conv(i, o, 1, stride, act=nn.Identity())
        return _Residual(body, shortcut, nn.ReLU())

    def make() -> nn.Module:
        blocks = [block(16, 16, 1), block(16, 24, 2), block(24, 32, 2)]
        return _Pooled(nn.Sequential(_conv(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks), 32)

    return _images(build(make))


def densenet() -> Made:
    """DenseNet, arXiv:1608.06993."""

    def layer(i: int, growth: int = 8) -> nn.Module:
        body = [nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, 16, 1), nn.BatchNorm2d(16), nn.ReLU()]
        return _Concat([nn.Sequential(*body, nn.Conv2d(16, growth, 3, padding=1))], keep=True)

    def make() -> nn.Module:
        dense = [layer(16), layer(24), layer(32)]
        transition = [nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 16, 1), nn.AvgPool2d(2), layer(16)]
        return _Pooled(nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), *dense, *transition), 24)

    return _images(build(make))


def squeezenet() -> Made:
    """SqueezeNet, arXiv:1602.07360."""

    def fire(i: int, squeeze: int, expand: int) -> nn.Module:
        branches = [nn.Sequential(nn.Conv2d(squeeze, expand, k, padding=k // 2), nn.ReLU()) for k in (1, 3)]
        return nn.Sequential(nn.Conv2d(i, squeeze, 1), nn.ReLU(), _Concat(branches))

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), fire(16, 8, 12), fire(24, 8, 16),
            nn.Conv2d(32, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    module, inputs, axes = _images(build(make))
    return module, {"input": inputs["image"]}, {"input": axes["image"]}


def shufflenet() -> Made:
    """ShuffleNet v2, halves and a channel shuffle, arXiv:1807.11164."""

    class Unit(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            half = channels // 2
            self.branch = nn.Sequential(
                _conv(half, half, 1), _conv(half, half, 3, groups=half, act=nn.Identity()), _conv(half, half, 1)
            )

        def forward(self, x: Tensor) -> Tensor:
            kept, worked = x.chunk(2, 1)
            x = torch.cat([kept, self.branch(worked)], 1)
            batch, channels, height, width = x.shape
            return (
                x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
            )

    def make() -> nn.Module:
        return _Pooled(nn.Sequential(_conv(3, 16, 3, 2), Unit(16), Unit(16), _conv(16, 32, 1)), 32)

    return _images(build(make))


def inception() -> Made:
    """An Inception block, arXiv:1409.4842."""

    def make() -> nn.Module:
        branches = [
            _conv(16, 8, 1),
            nn.Sequential(_conv(16, 8, 1), _conv(8, 12)),
            nn.Sequential(_conv(16, 4, 1), _conv(4, 8, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(16, 4, 1)),
        ]
        return _Pooled(nn.Sequential(_conv(3, 16, 3, 2), _Concat(branches)), 32)

    return _images(build(make))


def mobilenet_v2_style() -> Made:
    """Inverted residuals with ReLU6, arXiv:1801.04381."""

    def block(i: int, o: int, stride: int, expand: int = 3) -> nn.Module:
        wide = i * expand
        body = nn.Sequential(
            _conv(i, wide, 1, act=nn.ReLU6()), _conv(wide, wide, 3, stride, wide, nn.ReLU6()),
            _conv(wide, o, 1, act=nn.Identity()),
        )  # fmt: skip
        return _Residual(body) if i == o and stride == 1 else body

    def make() -> nn.Module:
        return _Pooled(nn.Sequential(_conv(3, 8, 3, 2), block(8, 16, 2), block(16, 16, 1), block(16, 24, 2)), 24)

    return _images(build(make))


def mobilenet_v3_style() -> Made:
    """Squeeze-and-excite with hard swishes, arXiv:1905.02244."""

    class Excite(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))

    def block(i: int, o: int) -> nn.Module:
        depthwise = _conv(2 * i, 2 * i, 5, 2, 2 * i, nn.Hardswish())
        return nn.Sequential(_conv(i, 2 * i, 1, act=nn.Hardswish()), depthwise, Excite(2 * i), nn.Conv2d(2 * i, o, 1))

    def make() -> nn.Module:
        return _Pooled(nn.Sequential(_conv(3, 8, 3, 2, act=nn.Hardswish()), block(8, 12), block(12, 16)), 16)

    return _images(build(make))


def squeeze_excite() -> Made:
    """A residual network with squeeze-and-excite by linear layers, arXiv:1709.01507."""

    class Excite(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(channels, 8), nn.Linear(8, channels)

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
            return x * gate[:, :, None, None]

    def make() -> nn.Module:
        block = _Residual(nn.Sequential(_conv(16, 16), _conv(16, 16, act=nn.Identity()), Excite(16)), last=nn.ReLU())
        return _Pooled(nn.Sequential(_conv(3, 16, 3, 2), block), 16)

    return _images(build(make))


class _UNet(nn.Module):
    """Two levels down and up, with skips."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = _conv(3, 8), _conv(8, 16), _conv(16, 24)
        self.transposed = transposed
        if transposed:
            self.up2, self.up1 = nn.ConvTranspose2d(24, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        else:
            self.up2, self.up1 = nn.Conv2d(24, 16, 1), nn.Conv2d(16, 8, 1)
        self.join2, self.join1, self.out = _conv(32, 16), _conv(16, 8), nn.Conv2d(8, 3, 1)

    def rise(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.transposed:
            return layer(x)
        return layer(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))

    def forward(self, image: Tensor) -> Tensor:
        one = self.down1(image)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.middle(F.max_pool2d(two, 2))
        x = self.join2(torch.cat([self.rise(self.up2, x), two], 1))
        return self.out(self.join1(torch.cat([self.rise(self.up1, x), one], 1)))


def unet_transposed() -> Made:
    """U-Net with transposed convolutions, arXiv:1505.04597."""
    return _images(build(lambda: _UNet(True)))


def unet_bilinear() -> Made:
    """U-Net with bilinear upsampling, arXiv:1505.04597."""
    return _images(build(lambda: _UNet(False)))


def fpn_detector() -> Made:
    """A feature pyramid with one head for every level, arXiv:1612.03144 and arXiv:1708.02002."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2, self.c3 = _conv(3, 8, 3, 2), _conv(8, 16, 3, 2), _conv(16, 24, 3, 2)
            self.l2, self.l3 = nn.Conv2d(16, 16, 1), nn.Conv2d(24, 16, 1)
            self.head, self.scores, self.boxes = _conv(16, 16), nn.Conv2d(16, 6, 3, 1, 1), nn.Conv2d(16, 12, 3, 1, 1)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            c2 = self.c2(self.c1(image))
            p3 = self.l3(self.c3(c2))
            p2 = self.l2(c2) + F.interpolate(p3, scale_factor=2.0, mode="nearest")
            heads = [self.head(p) for p in (p2, p3)]
            scores = torch.cat([self.scores(h).flatten(2) for h in heads], 2)
            return scores, torch.cat([self.boxes(h).flatten(2) for h in heads], 2)

    return _images(build(Pyramid))


def anchor_free_detector() -> Made:
    """Scores, centredness and distances per cell, arXiv:1904.01355."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(_conv(3, 8, 3, 2), _conv(8, 16, 3, 2))
            self.tower = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.SiLU())
            self.scores, self.centre, self.distances = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = self.tower(self.backbone(image))
            return (
                self.scores(x),
                torch.sigmoid(self.centre(x)),
                torch.exp(self.scale * self.distances(x)).clamp(max=50),
            )

    return _images(build(Detector))


def yolo_style() -> Made:
    """CSP blocks, pyramid pooling and decoded boxes, as YOLOv5 has them (Jocher 2020)."""

    class Csp(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            half = channels // 2
            self.one, self.two = _conv(channels, half, 1, act=nn.SiLU()), _conv(channels, half, 1, act=nn.SiLU())
            self.body = _Residual(_conv(half, half, act=nn.SiLU()))
            self.join = _conv(channels, channels, 1, act=nn.SiLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.join(torch.cat([self.body(self.one(x)), self.two(x)], 1))

    class Yolo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(_conv(3, 8, 3, 2, act=nn.SiLU()), _conv(8, 16, 3, 2, act=nn.SiLU()), Csp(16))
            self.pool, self.join, self.head = nn.MaxPool2d(5, 1, 2), nn.Conv2d(48, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, image: Tensor) -> Tensor:
            x = self.backbone(image)
            once = self.pool(x)
            x = self.head(self.join(torch.cat([x, once, self.pool(once)], 1)))
            batch, _, height, width = x.shape
            x = x.view(batch, 2, 8, height, width).permute(0, 1, 3, 4, 2).sigmoid()
            centre, size, rest = x.split([2, 2, 4], -1)
            return torch.cat([centre * 2 - 0.5, (size * 2) ** 2, rest], -1).reshape(batch, -1, 8)

    return _images(build(Yolo))


def hrnet_keypoints() -> Made:
    """Two resolutions side by side that exchange features, heat maps, arXiv:1902.09212."""

    class HighResolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down = _conv(3, 8, 3, 2), _conv(8, 16, 3, 2)
            self.fine, self.coarse = _conv(8, 8), _conv(16, 16)
            self.to_fine, self.to_coarse = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 3, 2, 1)
            self.heat = nn.Conv2d(24, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            fine = self.stem(image)
            coarse = self.coarse(self.down(fine))
            fine = self.fine(fine)
            mixed = F.relu(fine + F.interpolate(self.to_fine(coarse), scale_factor=2.0, mode="nearest"))
            coarse = F.relu(coarse + self.to_coarse(fine))
            up = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=True)
            return self.heat(torch.cat([mixed, up], 1))

    return _images(build(HighResolution))


def soft_argmax_keypoints() -> Made:
    """Coordinates as the expectation of a heat map, arXiv:1711.08229."""

    class Keypoints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(_conv(3, 8, 3, 2), _conv(8, 16), nn.Conv2d(16, 4, 1))
            self.register_buffer("grid", torch.linspace(-1, 1, 16))

        def forward(self, image: Tensor) -> Tensor:
            heat = self.body(image)
            p = heat.flatten(2).softmax(-1).view_as(heat)
            return torch.stack([(p.sum(2) * self.grid).sum(-1), (p.sum(3) * self.grid).sum(-1)], -1)

    return _images(build(Keypoints))


def crnn_ocr() -> Made:
    """Convolutions and a bidirectional LSTM for lines of text, arXiv:1507.05717."""

    class Crnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolutions = nn.Sequential(_conv(1, 8), nn.MaxPool2d(2), _conv(8, 16), nn.MaxPool2d((4, 1)))
            self.lstm = nn.LSTM(32, 16, bidirectional=True, batch_first=True)
            self.linear = nn.Linear(32, 11)

        def forward(self, image: Tensor) -> Tensor:
            x = self.convolutions(image).permute(0, 3, 1, 2).flatten(2)
            return self.linear(self.lstm(x)[0]).log_softmax(-1)

    return floats(build(Crnn), 1, 16, 32, name="image")


def pixel_shuffle_super_resolution() -> Made:
    """ESPCN, sub-pixel convolution, arXiv:1609.05158."""

    class Espcn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 9, 3, padding=1))

        def forward(self, image: Tensor) -> Tensor:
            up = F.interpolate(image, scale_factor=3.0, mode="bicubic", align_corners=False)
            return F.pixel_shuffle(self.body(image), 3) + up

    return _images(build(Espcn), 12, 1)


def convolutional_autoencoder() -> Made:
    """Strided convolutions down, transposed ones up."""

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(_conv(1, 8, 3, 2, act=nn.ELU()), nn.Flatten(), nn.Linear(8 * 64, 16))
            self.expand = nn.Linear(16, 8 * 64)
            self.decoder = nn.ConvTranspose2d(8, 1, 4, 2, 1)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            code = self.encoder(image)
            return torch.sigmoid(self.decoder(self.expand(code).view(-1, 8, 8, 8))), code

    return _images(build(Autoencoder), 16, 1)


def style_transfer() -> Made:
    """Reflection padding, instance normalization, nearest upsampling, arXiv:1603.08155."""

    def make() -> nn.Module:
        residual = _Residual(
            nn.Sequential(
                nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU(),
                nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3), nn.InstanceNorm2d(16, affine=True),
            )
        )  # fmt: skip
        return nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, 16, 3, 2), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), residual,
            nn.Upsample(scale_factor=2, mode="nearest"), nn.ReflectionPad2d(1), nn.Conv2d(16, 3, 3),
        )  # fmt: skip

    module, inputs, axes = _images(build(make), 16)
    return module, {"input": inputs["image"]}, {"input": axes["image"]}


def siamese_embedding() -> Made:
    """Two images, one network, the distance between them (Bromley et al. 1993)."""

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(_conv(1, 8, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 16))

        def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            a, b = F.normalize(self.body(first)), F.normalize(self.body(second))
            return (a - b).abs().sum(-1), F.cosine_similarity(a, b)

    module, inputs, axes = _images(build(Siamese), 16, 1)
    image = inputs["image"]
    return module, {"first": image, "second": image.flip(0)}, {"first": axes["image"], "second": axes["image"]}


def spatial_transformer() -> Made:
    """An affine grid and bilinear sampling, arXiv:1506.02025."""

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.locate = nn.Sequential(_conv(1, 8, 3, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 6))
            self.body = _Pooled(_conv(1, 8, 3, 2), 8)

        def forward(self, image: Tensor) -> Tensor:
            theta = (self.locate(image) * 0.1).view(-1, 2, 3) + torch.eye(2, 3)
            grid = F.affine_grid(theta, [image.shape[0], 1, 16, 16], align_corners=False)
            return self.body(F.grid_sample(image, grid, align_corners=False))

    return _images(build(Transformer), 16, 1)


def video_convolutions() -> Made:
    """3-D convolutions on clips (C3D), arXiv:1412.0767."""

    class Clips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 16, 3, padding=1)
            self.norm, self.out = nn.BatchNorm3d(8), nn.Linear(16, 5)

        def forward(self, clip: Tensor) -> Tensor:
            x = F.max_pool3d(F.relu(self.norm(self.conv1(clip))), 2)
            return self.out(F.relu(self.conv2(x)).mean((2, 3, 4)))

    return floats(build(Clips), 3, 4, 12, 12, name="clip")
