"""What a case is and what it finds, also of settings to choose from; the folder of the data, and of a zip's files."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from benchmarks.measure import BenchmarkError
from edgelora.config import LoraConfig

HEAD_ALONE, LORA, PEFT_LORA = "frozen base, fresh head", "LoRA", "LoRA by PEFT"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What one side reached on the held-out data with one seed, and how long its training took."""

    side: str
    seed: int
    metrics: dict[str, float]
    seconds: float


class Case(Protocol):
    """A task on real data. `settings` says in a sentence or two what all sides share."""

    @property
    def title(self) -> str: ...

    def settings(self, quick: bool) -> str: ...

    def run(self, folder: Path, quick: bool, seeds: Sequence[int], progress: Progress) -> Iterator[Outcome]:
        """Train and evaluate each side with each seed, of first values, batches and what is varied.

        `quick` is a small run that shows that everything works.
        """
        ...


@dataclass(frozen=True)
class Grid:
    """Settings to choose from. Rank 0 is a head alone."""

    rates: Sequence[float]
    epochs: Sequence[int]
    ranks: Sequence[int] = (0, 8)
    seeds: Sequence[int] = (0,)

    def settings(self) -> Iterator[tuple[int, int, int, float]]:
        """Seed, rank, epochs and rate of each training, all settings with one seed before the next."""
        return itertools.product(self.seeds, self.ranks, self.epochs, self.rates)

    def side(self, rank: int, epochs: int, rate: float) -> str:
        """How an outcome names them."""
        return f"{f'LoRA r={rank}' if rank else HEAD_ALONE}, {epochs} epochs, rate {rate:g}"


def adapter_of(rank: int) -> LoraConfig:
    """LoRA at all points with alpha of twice the rank, or of rank 0 a head alone."""
    return LoraConfig(r=rank, lora_alpha=2 * rank) if rank else LoraConfig(target_modules=())


@runtime_checkable
class Tried(Case, Protocol):
    """A case whose settings are chosen on its training data."""

    def tried(self, folder: Path, grid: Grid, progress: Progress) -> Iterator[Outcome]:
        """Train with each of the settings on a part of the training data, evaluate on the rest of it."""
        ...


def unpacked(name: str, folder: Path) -> Path:
    """The files of NAME.zip of $EDGELORA_DATA, or of ../shared/data beside the checkout, in `folder`.

    Raises:
        BenchmarkError: it is not there.
    """
    configured = os.environ.get("EDGELORA_DATA")
    data = Path(configured) if configured else Path(__file__).parents[3] / "shared" / "data"
    path = data / f"{name}.zip"
    if not path.is_file():
        raise BenchmarkError(f"{path} is missing; say where {path.name} lies by EDGELORA_DATA=FOLDER")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder
