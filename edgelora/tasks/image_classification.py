"""A label for each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgelora.media.drawing import Figure
from edgelora.media.files import content_record, file_field, is_folder, labelled_files
from edgelora.media.images import SUFFIXES
from edgelora.objectives import Classification, balanced_weights
from edgelora.records import Record, label_field
from edgelora.samples import Named, Sample, label_index
from edgelora.tasks.classes import named_classes, scored_classes
from edgelora.tasks.image import ImageTask, image_inputs, shown_input
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


@dataclass(frozen=True)
class ImageSample:
    """A file with a picture and its label; `name` is its path in the data set (its file name, unless given)."""

    path: Path
    label: str
    name: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,)

    @property
    def stratum(self) -> str:
        return self.label

    def record(self) -> Any:
        return self.name or self.path.name, content_record(self.path), self.label


class ImageClassification(ImageTask):
    """Cross-entropy of a label per picture.

    Data are a folder FOLDER/LABEL/FILE, or records with the fields `image`, a path from where the file of records
    lies, and `label`.
    """

    name: ClassVar[str] = "image-classification"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    fields: ClassVar[tuple[str, ...]] = ("image", "label")
    has_classes: ClassVar[bool] = True

    def sample(self, record: Record, beside: Path) -> ImageSample:
        path, name = file_field(record, "image", beside)
        return ImageSample(path, label_field(record), name)

    def read(self, path: str | Path, fmt: str | None = None) -> list[Sample]:
        return [*_in_folder(Path(path))] if is_folder(Path(path)) else super().read(path, fmt)

    def read_named(self, path: str | Path, fmt: str | None = None) -> list[Named[Sample]]:
        if is_folder(Path(path)):
            return [Named(sample, None, str(sample.path)) for sample in _in_folder(Path(path))]
        return super().read_named(path, fmt)

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Classification:
        pictures = [s for s in samples if isinstance(s, ImageSample)]
        index = label_index(pictures, labels)
        y = np.asarray([index[s.label] for s in pictures], np.int64)
        inputs = image_inputs(model, [s.path for s in pictures], config)
        return Classification(inputs, y, balanced_weights(y, len(index)) if config.class_weight else None)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[Any]:
        return named_classes(*model.answer(inputs, adapter, adapters))

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        scored = scored_classes(*model.answer(inputs, adapter, adapters))
        return [{"image": shown_input(raw), **one} for raw, one in zip(inputs, scored, strict=True)]

    def figure(self, result: Mapping[str, Any], names: tuple[str, ...]) -> Figure:
        return Figure(names, f"{result['label']}  {result['score']:.2f}")

    def truth(self, sample: Sample, names: tuple[str, ...]) -> tuple[Path, Figure]:
        assert isinstance(sample, ImageSample)
        return sample.path, Figure(names, sample.label)


def _in_folder(folder: Path) -> list[ImageSample]:
    return [ImageSample(f.path, f.label, f.name) for f in labelled_files(folder, SUFFIXES, "pictures")]
