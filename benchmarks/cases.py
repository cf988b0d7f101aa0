"""What is learnt in a speed run: model, data, adapters and batch, a row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import clinc
from benchmarks.measure import BenchmarkError
from edgelora.bundle import Bundle
from edgelora.errors import EdgeLoraError
from edgelora_tools.recipes import fetch, load_recipe


@dataclass(frozen=True)
class Case:
    """`rate` is the learning rate of the cost runs, `rates` those among which each side may choose."""

    name: str
    title: str
    recipe: str
    targets: tuple[str, ...]
    batch_size: int
    layers: int
    threshold: float
    rates: tuple[float, ...]

    def model(self, progress: clinc.Progress) -> Path:
        """The model's folder, fetched if need be.

        Raises:
            BenchmarkError: it cannot be had.
        """
        try:
            return fetch(load_recipe(self.recipe), progress)
        except EdgeLoraError as error:
            raise BenchmarkError(str(error)) from error

    def bundle(self, model: Path, conversion: Mapping[str, Any], progress: clinc.Progress) -> Path:
        """The model's bundle with these options of ConvertOptions."""
        return clinc.cached_bundle(model, self.targets, progress, conversion)

    def last(self, count: int) -> tuple[int, ...]:
        """The numbers of the last layers."""
        return tuple(range(self.layers - count, self.layers))


TEXT = Case(
    name="text",
    title="all-MiniLM-L6 on CLINC150, LoRA r8 on query and value",
    recipe=clinc.RECIPE,
    targets=("query", "value"),
    batch_size=32,
    layers=6,
    threshold=clinc.THRESHOLD,
    rates=(2e-3, 5e-3),
)
CASES: dict[str, Case] = {case.name: case for case in (TEXT,)}


@dataclass(frozen=True)
class Work:
    """A case's data, ready to be written as jobs."""

    case: Case
    options: clinc.ClincOptions
    bundle: Bundle
    model: Path
    data: tuple[clinc.Utterances, clinc.Utterances]
    intents: tuple[str, ...]

    def write(
        self, folder: Path, repeat: int, layers: tuple[int, ...] | None = None, bundle: Bundle | None = None
    ) -> Path:
        """The job of one repeat, with adapters in all layers, in these, or at every point of another bundle."""
        chosen, everywhere = bundle or self.bundle, bundle is not None
        return clinc.write_job(
            folder, self.options, chosen, self.model, self.data, self.intents, repeat, layers, everywhere
        )
