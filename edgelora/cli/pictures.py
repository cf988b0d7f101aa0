"""Pictures that the command line leaves: predictions drawn on what they are of, and a sheet of before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgelora.adapter import Adapter
from edgelora.errors import ConfigError, DataError
from edgelora.media.contact_sheet import CELL, Row, check_name, check_place, contact_sheet, save_picture
from edgelora.media.drawing import Figure, Picture, draw
from edgelora.media.images import read_picture
from edgelora.runtime import AdapterLike, Model
from edgelora.samples import Sample
from edgelora.tasks.image import ImageTask

ROWS = 6
"""The pictures on a contact sheet."""
TITLES = ("truth", "before", "after")


def drawing_task(model: Model, option: str) -> ImageTask:
    """The model's task.

    Raises:
        ConfigError: its inputs are no pictures; names the option that wants them.
    """
    if not isinstance(model.task, ImageTask):
        raise ConfigError(f"{option} is for tasks on pictures, and this bundle is for {model.task.name}")
    return model.task


def drawn_files(model: Model, inputs: Sequence[Path], folder: Path) -> list[Path]:
    """Where `save_drawn` leaves each picture: NAME.png in the folder; of equal names the later ones are numbered.

    Raises:
        ConfigError: the model's inputs are no pictures. DataError: the folder holds one of them, which could be
            overwritten, or no files can be made there.
    """
    drawing_task(model, "--draw")
    check_place(folder / "1.png")
    if own := next((path for path in inputs if path.parent.resolve() == folder.resolve()), None):
        raise DataError(f"{folder}: holds {own.name}, which what is drawn could overwrite; give --draw another folder")
    taken: set[str] = set()
    last: dict[str, int] = {}
    files: list[Path] = []
    for path in inputs:
        name, number = path.stem, last.get(path.stem, 1)
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        last[path.stem] = number
        taken.add(name)
        files.append(folder / f"{name}.png")
    return files


def save_drawn(
    model: Model,
    inputs: Sequence[Path],
    results: Sequence[Mapping[str, Any]],
    adapters: Sequence[AdapterLike],
    files: Sequence[Path],
) -> None:
    """Each result on its picture, in a file of its own."""
    task = drawing_task(model, "--draw")
    for path, result, adapter, file in zip(inputs, results, adapters, files, strict=True):
        names = () if adapter is None else model.labels(adapter)
        save_picture(_drawn(path, task.figure(result, names)), file)


class BeforeAndAfter:
    """The sheet of a training: what was predicted for some samples before it, until there is what is predicted after.

    Raises:
        ConfigError: the task's inputs are no pictures. DataError: the file's name says no format, or it cannot be made.
    """

    def __init__(self, model: Model, samples: Sequence[Sample], before: Adapter, file: Path) -> None:
        self.model, self.file = model, file
        self.task = drawing_task(model, "--contact-sheet")
        check_name(file)
        check_place(file)
        step = max(len(samples) / ROWS, 1.0)
        self.samples = [samples[int(i * step)] for i in range(min(ROWS, len(samples)))]
        self._before = self._predicted(before)

    def save(self, after: Adapter) -> None:
        """Write the sheet.

        Raises:
            DataError: the file cannot be written.
        """
        rows: list[Row] = []
        for sample, before, now in zip(self.samples, self._before, self._predicted(after), strict=True):
            path, truth = self.task.truth(sample, after.labels or ())
            rows.append(Row(path.name, (_drawn(path, truth, CELL), before, now)))
        save_picture(contact_sheet(TITLES, rows), self.file)

    def _predicted(self, adapter: Adapter) -> list[Picture]:
        names = adapter.labels or ()
        paths = [self.task.truth(sample, names)[0] for sample in self.samples]
        results = self.task.results(self.model, paths, adapter, None)
        return [
            _drawn(path, self.task.figure(result, names), CELL) for path, result in zip(paths, results, strict=True)
        ]


def _drawn(path: Path, figure: Figure, longest: int | None = None) -> Picture:
    return draw(read_picture(path).pixels, figure, longest)
