"""What the tasks on sound share: labelled wav files, from a folder, a pattern of names, or a file that lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgelora.errors import ConfigError, DataError
from edgelora.media.files import FileSample, file_field, given_files, labelled_files, listed_files
from edgelora.media.sound_augmentation import SOUND_KINDS
from edgelora.media.sound_inputs import SoundEncoder, SoundInputs
from edgelora.media.wav import SUFFIXES
from edgelora.paths import is_folder
from edgelora.records import Record, label_field
from edgelora.samples import Named, Sample
from edgelora.tasks.base import Task
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import Model

LABEL = "{label}"
_ANY, _WHAT = "*", "wav files"


@dataclass(frozen=True)
class SoundSample(FileSample):
    """A wav file and its label, what is said in it or who speaks."""


class SoundTask(Task):
    """A task whose inputs are wav files, their bytes or `Sound`s.

    Data are a folder FOLDER/LABEL/FILE; a pattern of paths in which `{label}` stands for the label and `*` for anything
    (`recordings/{label}_anna_*.wav`); or records with the fields `audio`, a path from where the file of records lies,
    and `label`.
    """

    fields: ClassVar[tuple[str, ...]] = ("audio", "label")
    augmentations: ClassVar[tuple[str, ...]] = SOUND_KINDS
    inputs_name: ClassVar[str] = _WHAT

    def sample(self, record: Record, beside: Path) -> SoundSample:
        path, name = file_field(record, "audio", beside)
        return SoundSample(path, label_field(record), name)

    def read(self, path: str | Path, fmt: str | None = None) -> list[Sample]:
        found = sounds_at(path)
        return super().read(path, fmt) if found is None else [*found]

    def read_named(self, path: str | Path, fmt: str | None = None) -> list[Named[Sample]]:
        found = sounds_at(path)
        if found is None:
            return super().read_named(path, fmt)
        return [Named(sample, None, str(sample.path)) for sample in found]

    def read_inputs(self, path: str | Path, fmt: str | None = None) -> list[Named[Any]]:
        """The wav files in a folder, or those that the fields `audio` name."""
        if is_folder(Path(path)):
            return self.given_inputs([Named(str(path), None, str(path))])
        return [*listed_files(path, fmt, "audio")]

    def given_inputs(self, words: Sequence[Named[str]]) -> list[Named[Any]]:
        return [*given_files(words, SUFFIXES, _WHAT)]


def sound_encoder(model: Model) -> SoundEncoder:
    """The model's encoder of sounds.

    Raises:
        ConfigError: it takes none.
    """
    if not isinstance(model.encoder, SoundEncoder):
        raise ConfigError(
            "this bundle takes arrays, not sounds: convert the model again with --sound, and with --log-mel or "
            "--features if it reads a spectrum; arrays train in Python, with an objective of edgelora.objectives"
        )
    return model.encoder


def sound_inputs(model: Model, samples: Sequence[SoundSample], config: TrainingConfig) -> SoundInputs:
    """The sounds as a data set, varied in training as the settings say. Raises as `sound_encoder`."""
    return SoundInputs(sound_encoder(model), [s.path for s in samples], config.augment, config.seed)


def sounds_at(path: str | Path) -> list[SoundSample] | None:
    """The samples of a folder of labels, or of a pattern; None if the path is that of a file of records.

    Raises:
        DataError: there are none, or some have no label.
    """
    if LABEL in str(path):
        return matching_files(str(path))
    if not Path(path).is_dir():
        return None
    return [SoundSample(f.path, f.label, f.name) for f in labelled_files(Path(path), SUFFIXES, _WHAT)]


def matching_files(pattern: str) -> list[SoundSample]:
    """The files of a pattern: `{label}` is the label, `*` anything but a separator of folders.

    Raises:
        DataError: no file fits.
    """
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if LABEL in part or _ANY in part)
    root, rest = Path(*parts[:first]), parts[first:]
    wanted = "/".join(re.escape(part).replace(re.escape(_ANY), "[^/]*") for part in rest)
    head, *others = wanted.split(re.escape(LABEL))
    form = re.compile(f"{head}(?P<label>[^/]+?)" + "(?P=label)".join(others))
    samples: list[SoundSample] = []
    for file in sorted(root.glob("/".join(part.replace(LABEL, _ANY) for part in rest))):
        name = file.relative_to(root).as_posix()
        if (found := form.fullmatch(name)) and file.is_file():
            samples.append(SoundSample(file, found["label"], name))
    if not samples:
        raise DataError(f"{pattern}: no file fits this pattern")
    return samples
