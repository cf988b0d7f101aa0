"""What a case is and what it finds; the folder of the data, and of a zip's files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.measure import BenchmarkError

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
