"""A small convolutional base and pictures that it can learn to tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import module_source

TASK = "image-classification"
SIZE = 24
LABELS = ("disc", "level", "upright")


class Network(nn.Module):
    """Three blocks of convolution and BatchNorm; a map of features is left, `[batch, 16, 6, 6]`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o, stride in ((3, 12, 1), (12, 16, 2), (16, 16, 2))
        )
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.normal_(0, 0.1)  # pyright: ignore[reportOptionalMemberAccess]
                    layer.running_var.uniform_(0.5, 2)  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            image = layer(image)
        return image


def network() -> Any:
    """The base, with fixed random weights."""
    return Network().eval()


def write_bundle(base: Any, path: Path, task: str = TASK, **options: Any) -> Path:
    """Convert the base for a task on pictures of SIZE × SIZE."""
    source = module_source(base, {"image": torch.zeros(2, 3, SIZE, SIZE)}, "small", "torchscript", outputs=["map"])
    image = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "fit": "crop"}
    chosen = ConvertOptions(**{"task": task, "image": image} | options)
    convert(source, path, chosen)
    return path


def picture(label: str, rng: np.random.Generator) -> Image.Image:
    """A disc, or a bar that lies or stands, in any colours, of any size."""
    width, height = (int(x) for x in rng.integers(30, 60, 2))
    dark, light = rng.integers(0, 100, 3), rng.integers(150, 256, 3)
    y, x = np.mgrid[0:height, 0:width]
    v, u = (y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5
    inside = {"disc": u**2 + v**2 < 0.07, "level": abs(v) < 0.12, "upright": abs(u) < 0.12}[label]
    return Image.fromarray(np.where(inside[..., None], light, dark).astype(np.uint8))


def write_folder(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """FOLDER/LABEL/N.png, the labels in turn."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        (folder / label).mkdir(parents=True, exist_ok=True)
        picture(label, rng).save(folder / label / f"{number:03d}.png")
    return folder
