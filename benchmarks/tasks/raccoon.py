"""Raccoons, photographed: FastestDet, which knows 80 classes of things, learns one that is not among them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tasks.case import HEAD_ALONE, LORA, PEFT_LORA, Outcome, Progress, unpacked
from benchmarks.tasks.peft_side import fit_in_torch, with_peft
from edgelora.adapter import Adapter
from edgelora.config import LoraConfig
from edgelora.runtime import Model
from edgelora.tasks import objective_for
from edgelora.trainer import evaluate
from edgelora.training import starting_adapter, train
from edgelora.training_config import TrainingConfig
from edgelora.vision.annotations import DetectionSample, read_boxes
from edgelora.vision.detectors.objective import Detection
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import network
from edgelora_tools.sources.torch_export import module_source

HEAD = "detector"
RANK, BATCH = 8, 16
RATES = {HEAD_ALONE: 1e-2, LORA: 8e-3}  # each the best of those tried on 40 of the training photographs
TARGETS = ".*(SPP|detect_head).*"  # behind the backbone
METRICS = ("AP50", "AP")
AUGMENT = ("flip", "crop", "color")


@dataclass(frozen=True)
class Raccoon:
    """160 photographs to learn from, 40 to be asked about, as the data set has them."""

    title: str = "Raccoons, FastestDet"

    def sizes(self, quick: bool) -> tuple[int, int | None, int]:
        """Side of the pictures, training pictures, epochs."""
        return (64, 16, 1) if quick else (256, None, 10)

    def settings(self, quick: bool) -> str:
        side, count, epochs = self.sizes(quick)
        return (
            f"{count or 160} photographs of one new class, {side} × {side}, a new head on the maps before the "
            f"detector's outputs, LoRA r={RANK} at the dense convolutions behind the backbone, AdamW falling linearly "
            f"from {RATES[LORA]:g}, for the head alone from {RATES[HEAD_ALONE]:g}, batch {BATCH}, {epochs} epochs, "
            f"{', '.join(AUGMENT)} varied; AP as COCO has it on {count or 40} other photographs. "
            "PEFT's side takes the same pictures and the same gradient of the loss."
        )

    def run(self, folder: Path, quick: bool, seeds: Sequence[int], progress: Progress) -> Iterator[Outcome]:
        side, count, epochs = self.sizes(quick)
        data = unpacked("raccoon", unpacked("fastestdet", folder / "data"))
        train_data, test_data = (read_boxes(data / "data" / f"{part}_labels.csv") for part in ("train", "test"))
        train_data, test_data = train_data[:count], test_data[:count]
        progress("converting")
        module, inputs, axes = network("fastestdet").maps(data, side)
        options = ConvertOptions("object-detection", image={"size": (side, side), "order": "BGR"})
        convert(module_source(module, inputs, "fastestdet", dynamic=axes), folder / "base.edgelora", options)
        model = Model.open(folder / "base.edgelora")
        lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS)
        for seed in seeds:
            for side_name, asked in ((HEAD_ALONE, LoraConfig(r=RANK, target_modules=())), (LORA, lora)):
                progress(side_name)
                config = _config(side_name, epochs, seed)
                begun = time.monotonic()
                train(model, "learner", train_data, lora=asked, config=config, restart=True)
                seconds = time.monotonic() - begun
                adapter = model.store.load("learner")
                held_out = objective_for(model, test_data, adapter.labels, config)
                metrics = evaluate(model.bundle, adapter, held_out, BATCH)
                yield Outcome(side_name, seed, {name: metrics[name] for name in METRICS}, seconds)
            progress("PEFT")
            config = _config(LORA, epochs, seed)
            start = starting_adapter(model.bundle.manifest, None, lora, ("raccoon",), train_data, seed, model.bundle)
            module, _, _ = network("fastestdet").maps(data, side)
            yield _by_peft(module, start, model, (train_data, test_data), config, folder / f"start-{seed}")


def _config(side: str, epochs: int, seed: int) -> TrainingConfig:
    return TrainingConfig(
        num_train_epochs=epochs, batch_size=BATCH, learning_rate=RATES[side], augment=AUGMENT, seed=seed
    )


def _by_peft(
    base: torch.nn.Module,
    start: Adapter,
    model: Model,
    data: tuple[list[DetectionSample], list[DetectionSample]],
    config: TrainingConfig,
    folder: Path,
) -> Outcome:
    train_data, test_data = (objective_for(model, part, start.labels, config) for part in data)
    assert isinstance(train_data, Detection) and isinstance(test_data, Detection)
    weight, bias = (torch.from_numpy(start.tensors[f"{HEAD}.{name}"]) for name in ("weight", "bias"))
    head = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    head.load_state_dict({"weight": weight[..., None, None], "bias": bias})
    network = torch.nn.Sequential(with_peft(base, start, folder), head).eval()
    (name,) = (spec.name for spec in model.bundle.manifest.inputs)

    def backward(objective: Detection, rows: NDArray[np.int64]) -> None:
        maps = network(torch.from_numpy(objective.inputs(rows)[name]))
        _, gradients = objective.cotangents({"logits": maps.detach().numpy()}, rows, len(rows))
        maps.backward(torch.from_numpy(gradients["cotangent.logits"]))

    seconds = fit_in_torch(network, train_data, config, backward)
    with torch.no_grad():
        parts = np.array_split(np.arange(len(test_data)), -(-len(test_data) // BATCH))
        maps = [network(torch.from_numpy(test_data.inputs(rows)[name])).numpy() for rows in parts]
    metrics = test_data.metrics(maps, parts)
    return Outcome(PEFT_LORA, config.seed, {name: metrics[name] for name in METRICS}, seconds)


CASE = Raccoon()
