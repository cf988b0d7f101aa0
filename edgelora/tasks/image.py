"""What the tasks on pictures share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgelora.errors import ConfigError, DataError
from edgelora.media.augmentation import IMAGE_KINDS, Augmentation
from edgelora.media.drawing import Figure
from edgelora.media.files import given_files, listed_files
from edgelora.media.image_inputs import ImageEncoder, ImageInputs
from edgelora.media.images import SUFFIXES
from edgelora.media.placement import Placement
from edgelora.objectives import Array
from edgelora.paths import is_folder
from edgelora.samples import Named, Sample
from edgelora.tasks.base import Task
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


class ImageTask(Task):
    """A task whose inputs are pictures: files, bytes or arrays."""

    augmentations: ClassVar[tuple[str, ...]] = IMAGE_KINDS
    inputs_name: ClassVar[str] = "pictures"

    def read_inputs(self, path: str | Path, fmt: str | None = None) -> list[Named[Any]]:
        """The pictures in a folder, or those that the fields `image` name."""
        if is_folder(Path(path)):
            return self.given_inputs([Named(str(path), None, str(path))])
        return [*listed_files(path, fmt, "image")]

    def given_inputs(self, words: Sequence[Named[str]]) -> list[Named[Any]]:
        return [*given_files(words, SUFFIXES, "pictures")]

    @abstractmethod
    def figure(self, result: Mapping[str, Any], names: tuple[str, ...]) -> Figure:
        """What of a result is drawn on its picture; `names` are the adapter's labels."""

    @abstractmethod
    def truth(self, sample: Sample, names: tuple[str, ...]) -> tuple[Path, Figure]:
        """A sample's picture, and what is drawn on it of its labels."""


def image_encoder(model: Model) -> ImageEncoder:
    """The model's encoder of pictures.

    Raises:
        ConfigError: it takes none.
    """
    if not isinstance(model.encoder, ImageEncoder):
        raise ConfigError("this bundle takes arrays, not pictures: build an objective from edgelora.objectives")
    return model.encoder


@dataclass(frozen=True)
class Answer:
    """What the model says of one picture: its `outputs` by name, its adapter's labels, where it lies in the input."""

    outputs: Mapping[str, Array]
    labels: tuple[str, ...] | None
    placement: Placement

    def names(self, count: int) -> tuple[str, ...]:
        """The labels, or the numbers of `count` classes that have none."""
        return tuple(map(str, range(count))) if self.labels is None else self.labels


def answers(
    model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None, at_once: int
) -> Iterator[Answer]:
    """An answer for each picture; the outputs of at most `at_once` are held. Raises as `Model.outputs`."""
    pictures, encoder = picture_list(inputs), image_encoder(model)
    if adapters is not None and len(adapters) != len(pictures):
        raise ConfigError(f"{len(adapters)} adapters for {len(pictures)} rows: give one per row")
    for start in range(0, len(pictures), at_once):
        part = encoder.inputs(pictures[start : start + at_once])
        own = None if adapters is None else adapters[start : start + at_once]
        outputs, labels = model.answer(part, adapter, own)
        for row, names in enumerate(labels):
            yield Answer({name: array[row] for name, array in outputs.items()}, names, part.placement(row))


def image_inputs(model: Model, paths: Sequence[Path], config: TrainingConfig) -> ImageInputs:
    """The pictures as a data set, varied in training as the settings say. Raises as `image_encoder`."""
    augmentation = Augmentation(config.augment, config.seed) if config.augment else None
    return image_encoder(model).inputs(paths, augmentation)


def picture_list(inputs: RawInputs) -> list[Any]:
    """Pictures as they were given.

    Raises:
        DataError: arrays by name, of which the size of the picture is not known; one picture, and no list.
    """
    if isinstance(inputs, str | bytes | Path):
        raise DataError("predict takes a list of pictures: put the one in a list")
    if isinstance(inputs, Mapping):
        raise DataError("what is predicted lies on a picture: give files, bytes or uint8 arrays, not the graph's input")
    return list(inputs)
