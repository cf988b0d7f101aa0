"""Pictures that the command line leaves: predictions drawn on what they are of, and a sheet of before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgelora.adapter import Adapter
from edgelora.errors import ConfigError
from edgelora.media.contact_sheet import Row, check_name, contact_sheet, save_picture
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


def save_drawn(
    model: Model,
    inputs: Sequence[Path],
    results: Sequence[Mapping[str, Any]],
    adapters: Sequence[AdapterLike],
    folder: Path,
) -> list[Path]:
    """Each result on its picture, in a file NAME.png of the folder; of equal names the later ones are numbered."""
    task, made = drawing_task(model, "--draw"), list[Path]()
    for path, result, adapter in zip(inputs, results, adapters, strict=True):
        file, number = folder / f"{path.stem}.png", 1
        while file in made:
            number += 1
            file = folder / f"{path.stem}-{number}.png"
        names = () if adapter is None else model.labels(adapter)
        save_picture(_drawn(path, task.figure(result, names)), file)
        made.append(file)
    return made


class BeforeAndAfter:
    """The sheet of a training: what was predicted for some samples before it, until there is what is predicted after.

    Raises:
        ConfigError: the task's inputs are no pictures. DataError: the file's name says no format.
    """

    def __init__(self, model: Model, samples: Sequence[Sample], before: Adapter, file: Path) -> None:
        self.model, self.file = model, file
        self.task = drawing_task(model, "--contact-sheet")
        check_name(file)
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
            rows.append(Row(path.name, (_drawn(path, truth), before, now)))
        save_picture(contact_sheet(TITLES, rows), self.file)

    def _predicted(self, adapter: Adapter) -> list[Picture]:
        names = adapter.labels or ()
        paths = [self.task.truth(sample, names)[0] for sample in self.samples]
        results = self.task.results(self.model, paths, adapter, None)
        return [_drawn(path, self.task.figure(result, names)) for path, result in zip(paths, results, strict=True)]


def _drawn(path: Path, figure: Figure) -> Picture:
    return draw(read_picture(path).pixels, figure)
