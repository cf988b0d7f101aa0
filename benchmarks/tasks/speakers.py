"""From four speakers' digits the speaker encoder learns to tell two others apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tasks.case import LORA, PEFT_LORA, Outcome, Progress, unpacked
from benchmarks.tasks.peft_side import fit_in_torch, with_peft
from edgelora import LoraConfig, Model, TrainingConfig, evaluate, read_samples, train
from edgelora.tasks import objective_for
from edgelora.tasks.sound import SoundSample
from edgelora.training_start import starting_adapter
from edgelora.verification import SameSpeaker
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import fetch, load_recipe, network, open_recipe

RECIPE, TASK = "speaker-encoder", "speaker-verification"
Pair = tuple[str, str]
FOLDS = (("george", "jackson"), ("lucas", "nicolas"), ("theo", "yweweler"))
BASE, LORA_LSTM = "frozen base", "LoRA, last LSTM layer too"
RANK, BATCH, RATE, TEMPERATURE = 8, 40, 2e-3, 0.1
TARGETS = {LORA: ("linear",), LORA_LSTM: ("lstm_3", "linear")}


@dataclass(frozen=True)
class Speakers:
    """Equal error rates of all pairs of the held-out speakers' sounds, by the cosine of their embeddings."""

    title: str = "Held-out speakers, speaker encoder"
    folds: tuple[Pair, ...] = FOLDS

    def sizes(self, quick: bool) -> tuple[int, int, int]:
        """Folds, recordings a digit of each speaker, epochs."""
        return (1, 1, 1) if quick else (len(self.folds), 5, 4)

    def settings(self, quick: bool) -> str:
        folds, count, epochs = self.sizes(quick)
        held_out = " and ".join(f"({' and '.join(pair)})" for pair in self.folds[:folds])
        return (
            f"{count} recordings of each digit of six speakers; two held out in turn {held_out}; LoRA r={RANK}, "
            f"contrastive loss at {TEMPERATURE:g}, AdamW {RATE:g} falling linearly, batch {BATCH}, {epochs} epochs; "
            "PEFT in the linear layer, since it has no LoRA for LSTM."
        )

    def run(self, folder: Path, quick: bool, seeds: Sequence[int], progress: Progress) -> Iterator[Outcome]:
        folds, count, epochs = self.sizes(quick)
        pattern = f"{unpacked('fsdd', folder / 'data')}/recordings/*_{{label}}_*.wav"
        samples = [s for s in read_samples(pattern, TASK) if isinstance(s, SoundSample) and _number(s) < count]
        progress("converting")
        recipe = load_recipe(RECIPE)
        models: dict[str, Model] = {}
        for number, (side, targets) in enumerate(TARGETS.items()):
            path = folder / f"base-{number}.edgelora"
            if not path.exists():
                options = ConvertOptions(TASK, "pooler", target_modules=targets, name=recipe.name)
                convert(open_recipe(recipe), path, options)
            models[side] = Model.open(path)
        for seed in seeds:
            config = TrainingConfig(
                num_train_epochs=epochs, batch_size=BATCH, learning_rate=RATE, temperature=TEMPERATURE, seed=seed
            )
            found: dict[str, list[tuple[Pair, float, float]]] = {}
            for pair in self.folds[:folds]:
                learned = [s for s in samples if s.label not in pair]
                asked = [s for s in samples if s.label in pair]
                for side, rate, seconds in _fold(models, learned, asked, config, folder, progress):
                    found.setdefault(side, []).append((pair, rate, seconds))
            for side, each in found.items():
                rates = {f"without {' and '.join(pair)}": rate for pair, rate, _ in each}
                mean = float(np.mean(list(rates.values())))
                yield Outcome(side, seed, {"equal error rate": mean, **rates}, sum(seconds for _, _, seconds in each))


def _number(sample: SoundSample) -> int:
    return int(sample.path.stem.rsplit("_", 1)[1])


def _fold(
    models: Mapping[str, Model],
    learned: Sequence[SoundSample],
    asked: Sequence[SoundSample],
    config: TrainingConfig,
    folder: Path,
    progress: Progress,
) -> list[tuple[str, float, float]]:
    """Side, equal error rate, seconds of training: each in a bundle of its own points, whose graph goes no deeper."""
    model = models[LORA]
    held_out = _speakers(model, asked, config)
    rows: list[tuple[str, float, float]] = []
    for side, targets in TARGETS.items():
        progress(f"{side}, without {asked[0].label}")
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets)
        own = models[side]
        if not rows:
            start = starting_adapter(own.bundle.manifest, None, lora, None, learned, config.seed, own.bundle)
            rows.append((BASE, evaluate(own.bundle, start, held_out)["eer"], 0.0))
        report = train(own, "learner", learned, lora=lora, config=config, restart=True)
        rate = evaluate(own.bundle, own.store.load("learner"), held_out)["eer"]
        rows.append((side, rate, report.seconds))
    progress("PEFT")
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS[LORA])
    start = starting_adapter(model.bundle.manifest, None, lora, None, learned, config.seed, model.bundle)
    module, _ = network(RECIPE).encoder(fetch(load_recipe(RECIPE)))
    adapted = with_peft(module, start, folder / "start")
    seconds = fit_in_torch(adapted, _speakers(model, learned, config), config, lambda d, r: _backward(adapted, d, r))
    parts = np.array_split(np.arange(len(held_out)), -(-len(held_out) // BATCH))
    with torch.no_grad():
        embeddings = [_embeddings(adapted, held_out, rows).numpy() for rows in parts]
    return [*rows, (PEFT_LORA, held_out.metrics(embeddings, parts)["eer"], seconds)]


def _speakers(model: Model, samples: Sequence[SoundSample], config: TrainingConfig) -> SameSpeaker:
    made = objective_for(model, samples, None, config)
    assert isinstance(made, SameSpeaker)
    return made


def _embeddings(module: torch.nn.Module, data: SameSpeaker, rows: NDArray[np.int64]) -> torch.Tensor:
    (mels,) = data.inputs(rows).values()
    return torch.nn.functional.normalize(module(torch.from_numpy(np.asarray(mels)))["embedding"], dim=1)


def _backward(module: torch.nn.Module, data: SameSpeaker, rows: NDArray[np.int64]) -> None:
    """The gradient of the loss that the training graph has."""
    given = {name: torch.from_numpy(np.asarray(x)) for name, x in data.feeds(rows, data.weight(rows)).items()}
    e = _embeddings(module, data, rows)
    z = e[given["anchors"]] @ e.T * given["inverse_temperature"] + given["bias_mask"]
    nll = torch.nn.functional.cross_entropy(z, given["positives"], reduction="none")
    (nll * given["loss_weight"]).sum().backward()


CASE = Speakers()
