"""Hand signs of the ten digits, photographed: MobileNetV2 learns them from some people and is asked about others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks.case import HEAD_ALONE, LORA, Grid, Outcome, Progress, adapter_of, unpacked
from benchmarks.tasks.peft_side import train_by_peft
from edgelora import ImageSample, LoraConfig, Model, TrainingConfig, train
from edgelora.objectives import Classification
from edgelora.tasks import objective_for
from edgelora.training_start import starting_adapter
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import fetch, load_recipe, network, open_recipe

RECIPE, TASK = "mobilenetv2", "image-classification"
RANK, BATCH = 8, 16
HEAD_RATE, RATE = 3e-3, 3e-3


@dataclass(frozen=True)
class SignDigits:
    """The last quarter of each digit's photographs, in the order of their numbers, is of other people: held out."""

    title: str = "Sign digits, MobileNetV2"

    def sizes(self, quick: bool) -> tuple[int, int, int]:
        """Side of the pictures, training pictures a digit, epochs."""
        return (32, 8, 1) if quick else (96, 40, 5)

    def settings(self, quick: bool) -> str:
        side, count, epochs = self.sizes(quick)
        return (
            f"{count} pictures a digit, {side} × {side}, LoRA r={RANK} at every dense convolution, AdamW {RATE:g} "
            f"falling linearly ({HEAD_RATE:g} for a head alone), batch {BATCH}, {epochs} epochs; tested on the last "
            "quarter of each digit's photographs, which are of other people."
        )

    def run(self, folder: Path, quick: bool, seeds: Sequence[int], progress: Progress) -> Iterator[Outcome]:
        side, count, epochs = self.sizes(quick)
        train_data, test_data = digits(unpacked("sign_digits", folder / "data") / "Dataset", count, quick)
        progress("converting")
        model = _model(folder, side)
        alone, lora = adapter_of(0), adapter_of(RANK)
        labels = tuple(str(digit) for digit in range(10))
        for seed in seeds:
            for side_name, rate, asked in ((HEAD_ALONE, HEAD_RATE, alone), (LORA, RATE, lora)):
                progress(side_name)
                yield _ours(side_name, model, train_data, test_data, asked, _config(rate, epochs, seed))
            progress("PEFT")
            config = _config(RATE, epochs, seed)
            start = starting_adapter(model.bundle.manifest, None, lora, labels, train_data, seed, model.bundle)
            made: list[Any] = [objective_for(model, data, labels, config) for data in (train_data, test_data)]
            ours, held_out = (one for one in made if isinstance(one, Classification))
            module, _, _ = network(RECIPE).features(fetch(load_recipe(RECIPE)))
            yield train_by_peft(module, start, ours, held_out, config, folder / f"start-{seed}")

    def tried(self, folder: Path, grid: Grid, progress: Progress) -> Iterator[Outcome]:
        """The last quarter of each digit's photographs that are learned from is held out."""
        side, count, _ = self.sizes(False)
        samples, _ = digits(unpacked("sign_digits", folder / "data") / "Dataset", count)
        learned = [s for place, s in enumerate(samples) if place % count < count * 3 // 4]
        asked = [s for place, s in enumerate(samples) if place % count >= count * 3 // 4]
        progress("converting")
        model = _model(folder, side)
        for seed, rank, epochs, rate in grid.settings():
            config = _config(rate, epochs, seed)
            yield _ours(grid.side(rank, epochs, rate), model, learned, asked, adapter_of(rank), config)


def _config(rate: float, epochs: int, seed: int) -> TrainingConfig:
    return TrainingConfig(num_train_epochs=epochs, batch_size=BATCH, learning_rate=rate, seed=seed)


def _model(folder: Path, side: int) -> Model:
    """The bundle of pictures of `side` × `side` in `folder`, made unless it is there."""
    path = folder / f"base-{side}.edgelora"
    if not path.exists():
        recipe = load_recipe(RECIPE)
        convert(open_recipe(recipe), path, ConvertOptions(TASK, image={"size": (side, side)}, name=recipe.name))
    return Model.open(path)


def _ours(
    side: str,
    model: Model,
    train_data: Sequence[ImageSample],
    test_data: Sequence[ImageSample],
    lora: LoraConfig,
    config: TrainingConfig,
) -> Outcome:
    begun = time.monotonic()
    train(model, "learner", train_data, lora=lora, config=config, restart=True)
    seconds = time.monotonic() - begun
    told = model.predict([s.path for s in test_data], adapter="learner")
    hits = [t == s.label for t, s in zip(told, test_data, strict=True)]
    return Outcome(side, config.seed, {"accuracy": float(np.mean(hits))}, seconds)


def digits(folder: Path, count: int, quick: bool = False) -> tuple[list[ImageSample], list[ImageSample]]:
    """`count` training pictures of each digit, evenly from its first three quarters, and all of the last quarter."""
    train_data: list[ImageSample] = []
    test_data: list[ImageSample] = []
    for digit in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(digit.iterdir())
        border = len(files) * 3 // 4
        chosen = np.linspace(0, border - 1, count).round().astype(int)
        train_data += [ImageSample(files[i], digit.name) for i in chosen]
        test_data += [ImageSample(file, digit.name) for file in files[border : border + 4 if quick else None]]
    return train_data, test_data


CASE = SignDigits()
