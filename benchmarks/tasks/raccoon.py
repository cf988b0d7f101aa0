"""Raccoons, photographed: FastestDet, which knows 80 classes of things, learns one that is not among them."""

from __future__ import annotations

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
from edgelora.training import train
from edgelora.training_config import TrainingConfig
from edgelora.training_start import starting_adapter
from edgelora.vision.annotations import DetectionSample, read_boxes
from edgelora.vision.detectors.objective import Detection
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import network
from edgelora_tools.sources.torch_export import module_source

HEAD = "detector"
RANK, BATCH = 8, 16
HEAD_RATE, RATE = 2e-2, 4e-3  # of a head alone, of LoRA with it: chosen on training photographs held out
METRICS = ("AP50", "AP")
AUGMENT = ("flip", "crop", "color")


@dataclass(frozen=True)
class Raccoon:
    """160 photographs to learn from, 40 to be asked about, as the data set has them."""

    title: str = "Raccoons, FastestDet"

    def sizes(self, quick: bool) -> tuple[int, int | None, int]:
        """Side of the pictures, training pictures, epochs of each half of the training."""
        return (64, 16, 1) if quick else (256, None, 5)

    def settings(self, quick: bool) -> str:
        side, count, epochs = self.sizes(quick)
        return (
            f"{count or 160} photographs of one new class, {side} × {side}, {', '.join(AUGMENT)} varied; a new head on "
            f"the maps before the detector's outputs, batch {BATCH}, {2 * epochs} epochs of AdamW falling linearly "
            f"from {HEAD_RATE:g}. With LoRA the head learns alone for {epochs} epochs, then {epochs} from {RATE:g} "
            f"beside r={RANK} at every dense convolution. AP as COCO has it on {count or 40} other photographs. "
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
        path = folder / f"base-{side}.edgelora"
        if not path.exists():
            convert(module_source(module, inputs, "fastestdet", dynamic=axes), path, options)
        model = Model.open(path)
        points = tuple(point.id for point in model.bundle.manifest.points)
        alone, lora = LoraConfig(r=RANK, target_modules=()), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=points)
        for seed in seeds:
            head_alone = _config(2 * epochs, HEAD_RATE, seed)
            head_first, then_lora = _config(epochs, HEAD_RATE, seed), _config(epochs, RATE, seed)
            progress(HEAD_ALONE)
            seconds = train(model, "learner", train_data, lora=alone, config=head_alone, restart=True).seconds
            yield _outcome(HEAD_ALONE, model, test_data, head_alone, seconds)
            progress(LORA)
            seconds = train(model, "learner", train_data, lora=alone, config=head_first, restart=True).seconds
            seconds += train(model, "learner", train_data, lora=lora, config=then_lora).seconds
            yield _outcome(LORA, model, test_data, then_lora, seconds)
            progress("PEFT")
            start = None
            for asked in (alone, lora):
                start = starting_adapter(
                    model.bundle.manifest, start, asked, ("raccoon",), train_data, seed, model.bundle
                )
            assert start is not None
            module, _, _ = network("fastestdet").maps(data, side)
            yield _by_peft(
                module, start, model, (train_data, test_data), (head_first, then_lora), folder / f"start-{seed}"
            )


def _config(epochs: int, rate: float, seed: int) -> TrainingConfig:
    return TrainingConfig(num_train_epochs=epochs, batch_size=BATCH, learning_rate=rate, augment=AUGMENT, seed=seed)


def _outcome(
    side: str, model: Model, test_data: Sequence[DetectionSample], config: TrainingConfig, seconds: float
) -> Outcome:
    adapter = model.store.load("learner")
    metrics = evaluate(model.bundle, adapter, objective_for(model, test_data, adapter.labels, config), BATCH)
    return Outcome(side, config.seed, {name: metrics[name] for name in METRICS}, seconds)


def _by_peft(
    base: torch.nn.Module,
    start: Adapter,
    model: Model,
    data: tuple[list[DetectionSample], list[DetectionSample]],
    stages: tuple[TrainingConfig, TrainingConfig],
    folder: Path,
) -> Outcome:
    """The outcome of a head alone in the first stage, and PEFT's LoRA with it in the second, from `start`."""
    head_first, then_lora = stages
    train_data, test_data = (objective_for(model, part, start.labels, then_lora) for part in data)
    assert isinstance(train_data, Detection) and isinstance(test_data, Detection)
    weight, bias = (torch.from_numpy(start.tensors[f"{HEAD}.{name}"]) for name in ("weight", "bias"))
    head = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    head.load_state_dict({"weight": weight[..., None, None], "bias": bias})
    adapted = with_peft(base, start, folder)
    network = torch.nn.Sequential(adapted, head).eval()
    adapters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    (name,) = (spec.name for spec in model.bundle.manifest.inputs)

    def backward(objective: Detection, rows: NDArray[np.int64]) -> None:
        maps = network(torch.from_numpy(objective.inputs(rows)[name]))
        _, gradients = objective.cotangents({"logits": maps.detach().numpy()}, rows, len(rows))
        maps.backward(torch.from_numpy(gradients["cotangent.logits"]))

    seconds = 0.0
    for stage, learns in ((head_first, False), (then_lora, True)):
        for parameter in adapters:
            parameter.requires_grad_(learns)
        seconds += fit_in_torch(network, train_data, stage, backward)
    with torch.no_grad():
        parts = np.array_split(np.arange(len(test_data)), -(-len(test_data) // BATCH))
        maps = [network(torch.from_numpy(test_data.inputs(rows)[name])).numpy() for rows in parts]
    metrics = test_data.metrics(maps, parts)
    return Outcome(PEFT_LORA, then_lora.seed, {name: metrics[name] for name in METRICS}, seconds)


CASE = Raccoon()
