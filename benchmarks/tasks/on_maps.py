"""What the cases with a head on a map of MobileNetV2 share: a fresh head alone, LoRA, and PEFT's LoRA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.tasks.case import HEAD_ALONE, LORA, Grid, Outcome, Progress, adapter_of
from benchmarks.tasks.maps_peft import Feeds, train_by_peft
from edgelora import LoraConfig, Model, TrainingConfig, train
from edgelora.samples import Sample
from edgelora.tasks import objective_for
from edgelora.trainer import evaluate
from edgelora.training_start import merged_labels, starting_adapter
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import fetch, load_recipe, network, open_recipe
from edgelora_tools.sources import fixed

RECIPE, RANK, EVALUATED = "mobilenetv2-maps", 8, 8
IMAGE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class OnMaps:
    """A case: the task, the map that its head reads, and the height and width of pictures.

    `head_rate` is of a head alone, `rate` of LoRA with it. The last `tried_on` of the samples to learn from are what
    settings are chosen by.
    """

    title: str
    task: str
    output: str
    size: tuple[int, int]
    metrics: tuple[str, ...]
    epochs: int
    batch: int
    head_rate: float
    rate: float
    augment: tuple[str, ...]
    tested: str
    tried_on: int
    data: Callable[[Path, bool], tuple[Sequence[Sample], Sequence[Sample]]]
    loss: Callable[[torch.Tensor, Feeds], torch.Tensor]

    def config(self, rate: float, epochs: int, seed: int) -> TrainingConfig:
        return TrainingConfig(
            num_train_epochs=epochs, batch_size=self.batch, learning_rate=rate, augment=self.augment, seed=seed
        )

    def settings(self, quick: bool) -> str:
        height, width = self.size
        varied = f", varied by {' and '.join(self.augment)}" if self.augment else ""
        return (
            f"The map `{self.output}`, pictures of {width} × {height}{varied}, LoRA r={RANK} at every dense "
            f"convolution before it, AdamW {self.rate:g} falling linearly ({self.head_rate:g} for a head alone), "
            f"batch {self.batch}, {1 if quick else self.epochs} epochs; tested on {self.tested}."
        )

    def run(self, folder: Path, quick: bool, seeds: Sequence[int], progress: Progress) -> Iterator[Outcome]:
        train_data, test_data = self.data(folder / "data", quick)
        progress("converting")
        model = self.model(folder)
        alone, lora = adapter_of(0), adapter_of(RANK)
        labels = merged_labels(model.bundle.manifest, None, train_data)
        epochs = 1 if quick else self.epochs
        for seed in seeds:
            for side, rate, asked in ((HEAD_ALONE, self.head_rate, alone), (LORA, self.rate, lora)):
                progress(side)
                yield self.ours(side, model, (train_data, test_data), asked, self.config(rate, epochs, seed))
            progress("PEFT")
            config = self.config(self.rate, epochs, seed)
            ours, held_out = (objective_for(model, data, labels, config) for data in (train_data, test_data))
            start = starting_adapter(model.bundle.manifest, None, lora, labels, train_data, seed, model.bundle)
            module: Any = network(RECIPE).maps(fetch(load_recipe(RECIPE)))[0]
            enlarged = self.task == "semantic-segmentation"
            theirs = train_by_peft(
                module, self.output, start, ours, held_out, self.loss, enlarged, config, folder / f"start-{seed}"
            )
            yield self.shown(theirs.side, seed, theirs.metrics, theirs.seconds)

    def tried(self, folder: Path, grid: Grid, progress: Progress) -> Iterator[Outcome]:
        samples, _ = self.data(folder / "data", False)
        progress("converting")
        model = self.model(folder)
        parts = samples[: -self.tried_on], samples[-self.tried_on :]
        for seed, rank, epochs, rate in grid.settings():
            config = self.config(rate, epochs, seed)
            yield self.ours(grid.side(rank, epochs, rate), model, parts, adapter_of(rank), config)

    def model(self, folder: Path) -> Model:
        """The bundle in `folder`, made unless it is there."""
        path = folder / "base.edgelora"
        if path.exists():
            return Model.open(path)
        recipe = load_recipe(RECIPE)
        options = ConvertOptions(self.task, output=self.output, image={**IMAGE, "size": self.size}, name=recipe.name)
        height, width = self.size
        source = fixed(open_recipe(recipe), {"height": height, "width": width})
        convert(source, path, options)
        return Model.open(path)

    def ours(
        self,
        side: str,
        model: Model,
        parts: tuple[Sequence[Sample], Sequence[Sample]],
        lora: LoraConfig,
        config: TrainingConfig,
    ) -> Outcome:
        """What an adapter of these settings that learned the first part reaches on the second."""
        learned, asked = parts
        begun = time.monotonic()
        train(model, "learner", learned, lora=lora, config=config, restart=True)
        seconds = time.monotonic() - begun
        adapter = model.store.load("learner")
        held_out = objective_for(model, asked, adapter.labels, config)
        return self.shown(side, config.seed, evaluate(model.bundle, adapter, held_out, EVALUATED), seconds)

    def shown(self, side: str, seed: int, metrics: dict[str, float], seconds: float) -> Outcome:
        return Outcome(side, seed, {name: metrics[name] for name in self.metrics}, seconds)
