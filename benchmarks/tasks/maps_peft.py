"""A training of a head on a map as `edgelora.train` makes it, by PEFT on torch: same values, batches and schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tasks.case import PEFT_LORA, Outcome
from benchmarks.tasks.peft_side import fit_in_torch, with_peft
from edgelora.adapter import Adapter
from edgelora.objectives import Objective
from edgelora.training_config import TrainingConfig

Feeds = dict[str, torch.Tensor]


class HeadOnMap(torch.nn.Module):
    """The base's map named `output` and a convolution of one pixel; `enlarged` logits have the picture's size."""

    def __init__(self, base: torch.nn.Module, head: torch.nn.Conv2d, output: str, enlarged: bool) -> None:
        super().__init__()
        self.base, self.head, self.output, self.enlarged = base, head, output, enlarged

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        made = self.head(self.base(pictures)[self.output])
        if not self.enlarged:
            return made
        return torch.nn.functional.interpolate(made, size=pictures.shape[2:], mode="bilinear", align_corners=False)


def train_by_peft(
    base: torch.nn.Module,
    output: str,
    start: Adapter,
    train: Objective,
    test: Objective,
    loss: Callable[[torch.Tensor, Feeds], torch.Tensor],
    enlarged: bool,
    config: TrainingConfig,
    folder: Path,
) -> Outcome:
    """The outcome of PEFT's LoRA from the values of `start`.

    `base` is the module that the bundle was made of, `output` names its map, `enlarged` logits have the picture's size.
    `loss` is of logits and the loss's inputs.
    """
    head_name = (start.config.modules_to_save or ("",))[0]
    weight, bias = (torch.from_numpy(start.tensors[f"{head_name}.{part}"]) for part in ("weight", "bias"))
    head = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    head.load_state_dict({"weight": weight[..., None, None], "bias": bias})
    network = HeadOnMap(with_peft(base, start, folder), head, output, enlarged).eval()

    def backward(varied: Objective, rows: NDArray[np.int64]) -> None:
        feeds = {n: torch.from_numpy(np.asarray(x)) for n, x in varied.feeds(rows, train.weight(rows)).items()}
        loss(network(feeds.pop("image")), feeds).backward()

    seconds = fit_in_torch(network, train, config, backward)
    parts: list[NDArray[np.int64]] = np.array_split(np.arange(len(test)), -(-len(test) // config.batch_size))
    with torch.no_grad():
        measured = [
            test.measured(network(torch.from_numpy(np.asarray(test.inputs(rows)["image"]))).numpy(), rows)
            for rows in parts
        ]
    return Outcome(PEFT_LORA, config.seed, test.metrics(measured, parts), seconds)


def cross_entropy_dice(z: torch.Tensor, feeds: Feeds) -> torch.Tensor:
    """The loss of the same name as torch writes it."""
    labels, weight = feeds["labels"], feeds["loss_weight"]
    nll = (weight * torch.nn.functional.cross_entropy(z, labels, reduction="none")).sum()
    seen = (weight > 0).float()[:, None]
    p, t = z.softmax(1), torch.nn.functional.one_hot(labels, z.shape[1]).permute(0, 3, 1, 2)
    dice = (2 * (seen * p * t).sum((2, 3)) + 1) / ((seen * (p + t)).sum((2, 3)) + 1)
    return nll + (feeds["dice_weight"] * (1 - dice.mean(1))).sum()


def heatmap(z: torch.Tensor, feeds: Feeds) -> torch.Tensor:
    """The loss of the same name as torch writes it."""
    places = torch.nn.functional.cross_entropy(
        z.flatten(2).transpose(1, 2), feeds["targets"].flatten(2).transpose(1, 2), reduction="none"
    )
    return (feeds["loss_weight"] * places).sum()
