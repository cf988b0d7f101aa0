"""A label for each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgelora.media.drawing import Figure
from edgelora.media.files import FileSample, file_field, labelled_files
from edgelora.media.image_inputs import ImageInputs
from edgelora.media.images import SUFFIXES
from edgelora.paths import is_folder
from edgelora.records import Record, label_field
from edgelora.samples import Named, Sample
from edgelora.tasks.classes import ClassificationTask
from edgelora.tasks.image import ImageTask, image_inputs
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import Model


@dataclass(frozen=True)
class ImageSample(FileSample):
    """A file with a picture and its label."""


class ImageClassification(ClassificationTask, ImageTask):
    """Cross-entropy of a label per picture.

    Data are a folder FOLDER/LABEL/FILE, or records with the fields `image`, a path from where the file of records
    lies, and `label`.
    """

    name: ClassVar[str] = "image-classification"
    fields: ClassVar[tuple[str, ...]] = ("image", "label")

    def sample(self, record: Record, beside: Path) -> ImageSample:
        path, name = file_field(record, "image", beside)
        return ImageSample(path, label_field(record), name)

    def read(self, path: str | Path, fmt: str | None = None) -> list[Sample]:
        return [*_in_folder(Path(path))] if is_folder(Path(path)) else super().read(path, fmt)

    def read_named(self, path: str | Path, fmt: str | None = None) -> list[Named[Sample]]:
        if is_folder(Path(path)):
            return [Named(sample, None, str(sample.path)) for sample in _in_folder(Path(path))]
        return super().read_named(path, fmt)

    def inputs_of(self, model: Model, samples: Sequence[Sample], config: TrainingConfig) -> ImageInputs:
        return image_inputs(model, [s.path for s in samples if isinstance(s, ImageSample)], config)

    def figure(self, result: Mapping[str, Any], names: tuple[str, ...]) -> Figure:
        return Figure(names, f"{result['label']}  {result['score']:.2f}")

    def truth(self, sample: Sample, names: tuple[str, ...]) -> tuple[Path, Figure]:
        assert isinstance(sample, ImageSample)
        return sample.path, Figure(names, sample.label)


def _in_folder(folder: Path) -> list[ImageSample]:
    return [ImageSample(f.path, f.label, f.name) for f in labelled_files(folder, SUFFIXES, "pictures")]
