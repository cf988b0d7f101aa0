"""What the cases with a head on a map of MobileNetV2 share: a fresh head alone, LoRA, and PEFT's LoRA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.tasks.case import HEAD_ALONE, LORA, Outcome, Progress
from benchmarks.tasks.maps_peft import Feeds, train_by_peft
from edgelora import LoraConfig, Model, TrainingConfig, train
from edgelora.samples import Sample
from edgelora.tasks import objective_for
from edgelora.trainer import evaluate
from edgelora.training_start import merged_labels, starting_adapter
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import fetch, load_recipe, network, open_recipe
from edgelora_tools.sources import fixed

RECIPE, RANK = "mobilenetv2-maps", 8
IMAGE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class OnMaps:
    """A case: the task, the map that its head reads, and the height and width of pictures."""

    title: str
    task: str
    output: str
    size: tuple[int, int]
    metrics: tuple[str, ...]
    epochs: int
    batch: int
    rate: float
    augment: tuple[str, ...]
    tested: str
    data: Callable[[Path, bool], tuple[Sequence[Sample], Sequence[Sample]]]
    loss: Callable[[torch.Tensor, Feeds], torch.Tensor]

    def config(self, quick: bool, seed: int = 0) -> TrainingConfig:
        return TrainingConfig(
            num_train_epochs=1 if quick else self.epochs,
            batch_size=self.batch,
            learning_rate=self.rate,
            augment=self.augment,
            seed=seed,
        )

    def settings(self, quick: bool) -> str:
        height, width = self.size
        epochs = self.config(quick).num_train_epochs
        varied = f", varied by {' and '.join(self.augment)}" if self.augment else ""
        return (
            f"The map `{self.output}`, pictures of {width} × {height}{varied}, LoRA r={RANK} at every dense "
            f"convolution before it, AdamW {self.rate:g} falling linearly, batch {self.batch}, {epochs} epochs; "
            f"tested on {self.tested}."
        )

    def run(self, folder: Path, quick: bool, seeds: Sequence[int], progress: Progress) -> Iterator[Outcome]:
        train_data, test_data = self.data(folder / "data", quick)
        progress("converting")
        recipe = load_recipe(RECIPE)
        options = ConvertOptions(self.task, output=self.output, image={**IMAGE, "size": self.size}, name=recipe.name)
        height, width = self.size
        source = fixed(open_recipe(recipe), {"height": height, "width": width})
        convert(source, folder / "base.edgelora", options)
        model = Model.open(folder / "base.edgelora")
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=tuple(p.id for p in model.bundle.manifest.points))
        labels = merged_labels(model.bundle.manifest, None, train_data)
        for seed in seeds:
            config = self.config(quick, seed)
            ours, held_out = (objective_for(model, data, labels, config) for data in (train_data, test_data))
            for side, asked in ((HEAD_ALONE, LoraConfig(r=RANK, target_modules=())), (LORA, lora)):
                progress(side)
                begun = time.monotonic()
                train(model, "learner", train_data, lora=asked, config=config, restart=True)
                seconds = time.monotonic() - begun
                metrics = evaluate(model.bundle, model.store.load("learner"), held_out, 8)
                yield self.shown(side, seed, metrics, seconds)
            progress("PEFT")
            start = starting_adapter(model.bundle.manifest, None, lora, labels, train_data, seed, model.bundle)
            module: Any = network(RECIPE).maps(fetch(recipe))[0]
            enlarged = self.task == "semantic-segmentation"
            theirs = train_by_peft(
                module, self.output, start, ours, held_out, self.loss, enlarged, config, folder / f"start-{seed}"
            )
            yield self.shown(theirs.side, seed, theirs.metrics, theirs.seconds)

    def shown(self, side: str, seed: int, metrics: dict[str, float], seconds: float) -> Outcome:
        return Outcome(side, seed, {name: metrics[name] for name in self.metrics}, seconds)
