"""A training of a head on a map as `edgelora.train` makes it, by PEFT on torch: same values, batches and schedule."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.tasks.case import PEFT_LORA, Outcome
from edgelora.adapter import Adapter, write_adapter
from edgelora.batching import epoch_batches
from edgelora.objectives import Objective
from edgelora.schedules import learning_rate_factor
from edgelora.training_config import TrainingConfig

Feeds = dict[str, torch.Tensor]


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
    weight, bias = (torch.from_numpy(start.tensors[f"{head_name}.{part}"].copy()) for part in ("weight", "bias"))
    head = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    with torch.no_grad():
        head.weight.copy_(weight[:, :, None, None])
        head.bias.copy_(bias)  # pyright: ignore[reportOptionalMemberAccess]
    write_adapter(start, folder)
    settings: Any = peft.PeftConfig.from_pretrained(str(folder))
    settings.task_type, settings.inference_mode, settings.modules_to_save = None, False, None
    model = peft.get_peft_model(base.eval(), settings)
    values = {n: x for n, x in load_file(folder / "adapter_model.safetensors").items() if head_name not in n.split(".")}
    expected = peft.get_peft_model_state_dict(model)
    if values.keys() != expected.keys():
        raise SystemExit(f"not the adapter of this model: {sorted(values.keys() ^ expected.keys())}")
    peft.set_peft_model_state_dict(model, values)
    model.eval()
    learned = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=config.weight_decay)
    size = config.batch_size
    total = -(-len(train) // size) * config.num_train_epochs
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(config.lr_scheduler_type, step, 0, total)
    )

    def logits(pictures: torch.Tensor) -> torch.Tensor:
        made = head(model(pictures)[output])
        if not enlarged:
            return made
        return torch.nn.functional.interpolate(made, size=pictures.shape[2:], mode="bilinear", align_corners=False)

    begun = time.monotonic()
    for epoch in range(config.num_train_epochs):
        varied = train.of_epoch(epoch)
        for rows in epoch_batches(train.lengths(), size, config.seed, epoch, config.group_by_length):
            feeds = {n: torch.from_numpy(np.asarray(x)) for n, x in varied.feeds(rows, train.weight(rows)).items()}
            optimizer.zero_grad()
            loss(logits(feeds.pop("image")), feeds).backward()
            torch.nn.utils.clip_grad_norm_(learned, config.max_grad_norm)
            optimizer.step()
            rate.step()
    seconds = time.monotonic() - begun
    parts: list[NDArray[np.int64]] = np.array_split(np.arange(len(test)), -(-len(test) // size))
    with torch.no_grad():
        measured = [
            test.measured(logits(torch.from_numpy(np.asarray(test.inputs(rows)["image"]))).numpy(), rows)
            for rows in parts
        ]
    return Outcome(PEFT_LORA, test.metrics(measured, parts), seconds)


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
