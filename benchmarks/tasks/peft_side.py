"""A training on pictures as `edgelora.train` makes it, by PEFT on torch: same values, batches and schedule."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.tasks.case import PEFT_LORA, Outcome
from edgelora.adapter import Adapter, write_adapter
from edgelora.batching import epoch_batches
from edgelora.objectives import Classification, Objective
from edgelora.schedules import learning_rate_factor
from edgelora.training_config import TrainingConfig
from edgelora.verification import SameSpeaker
from edgelora.vision.detectors.objective import Detection

HEAD = "classifier"
Samples = TypeVar("Samples", Classification, Detection, SameSpeaker, Objective)


class Classifier(torch.nn.Module):
    """The base with its BatchNorm as it is, the mean of its map over the places, and a linear head."""

    def __init__(self, base: torch.nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.base = base
        self.classifier = torch.nn.Linear(features, classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        made: Any = self.base(pictures)
        features = made["features"] if isinstance(made, dict) else made
        return self.classifier(features.mean((2, 3)))


def train_by_peft(
    base: torch.nn.Module,
    start: Adapter,
    train: Classification,
    test: Classification,
    config: TrainingConfig,
    folder: Path,
) -> Outcome:
    """The outcome of PEFT's LoRA from the values of `start`; `base` is the module that the bundle was made of."""
    weight = start.tensors[f"{HEAD}.weight"]
    classifier = Classifier(with_peft(base, start, folder), weight.shape[1], weight.shape[0])
    with torch.no_grad():
        classifier.classifier.weight.copy_(torch.from_numpy(weight))
        classifier.classifier.bias.copy_(torch.from_numpy(start.tensors[f"{HEAD}.bias"]))
    classifier.eval()

    def backward(varied: Classification, rows: NDArray[np.int64]) -> None:
        torch.nn.functional.cross_entropy(classifier(_pictures(varied, rows)), _labels(train, rows)).backward()

    seconds = fit_in_torch(classifier, train, config, backward)
    size = config.batch_size
    with torch.no_grad():
        parts = np.array_split(np.arange(len(test)), -(-len(test) // size))
        hits = sum(int((classifier(_pictures(test, r)).argmax(1) == _labels(test, r)).sum()) for r in parts)
    return Outcome(PEFT_LORA, config.seed, {"accuracy": hits / len(test)}, seconds)


def with_peft(base: torch.nn.Module, start: Adapter, folder: Path) -> torch.nn.Module:
    """The base in evaluation mode with PEFT's LoRA, which has the values of `start`; its head is left out."""
    write_adapter(start, folder)
    settings: Any = peft.PeftConfig.from_pretrained(str(folder))
    heads = tuple(settings.modules_to_save or ())
    settings.task_type, settings.inference_mode, settings.modules_to_save = None, False, None
    model = peft.get_peft_model(base.eval(), settings)
    tensors = load_file(folder / "adapter_model.safetensors")
    values = {name: x for name, x in tensors.items() if not any(f".{head}." in name for head in heads)}
    expected = peft.get_peft_model_state_dict(model)
    if values.keys() != expected.keys():
        raise SystemExit(f"not the adapter of this model: {sorted(values.keys() ^ expected.keys())}")
    peft.set_peft_model_state_dict(model, values)
    return model


def fit_in_torch(
    network: torch.nn.Module,
    train: Samples,
    config: TrainingConfig,
    backward: Callable[[Samples, NDArray[np.int64]], None],
) -> float:
    """Train what has a gradient as `edgelora.train` would, and return the seconds.

    `backward(samples, rows)` leaves the gradient of the mean loss of a batch of an epoch's samples.
    """
    learned = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=config.weight_decay)
    size = config.batch_size
    total = -(-len(train) // size) * config.num_train_epochs
    warmup = config.warmup_steps or round(config.warmup_ratio * total)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(config.lr_scheduler_type, step, warmup, total)
    )
    begun = time.monotonic()
    for epoch in range(config.num_train_epochs):
        varied = train.of_epoch(epoch)
        for rows in epoch_batches(train.lengths(), size, config.seed, epoch, config.group_by_length):
            optimizer.zero_grad()
            backward(varied, rows)
            torch.nn.utils.clip_grad_norm_(learned, config.max_grad_norm)
            optimizer.step()
            rate.step()
    return time.monotonic() - begun


def _pictures(data: Classification, rows: NDArray[np.int64]) -> torch.Tensor:
    (array,) = data.inputs(rows).values()
    return torch.from_numpy(np.asarray(array))


def _labels(data: Classification, rows: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(data.labels[rows])
