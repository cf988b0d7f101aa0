"""Labelled data of a task, from a file, a folder or standard input; its kinds of samples."""

from __future__ import annotations

from pathlib import Path

from edgelora.samples import Named, Sample, digest, labels_of, split
from edgelora.tasks import task_named
from edgelora.tasks.image_classification import ImageSample
from edgelora.tasks.regression import NumberSample
from edgelora.tasks.sentence_embedding import PairSample
from edgelora.tasks.sequence_classification import TextSample
from edgelora.tasks.text import read_texts
from edgelora.tasks.token_classification import TokenSample


def read_samples(path: str | Path, task: str, fmt: str | None = None) -> list[Sample]:
    """Read the samples of a task; `path` "-" is standard input, whose format is JSONL unless given.

    Fields: text and label; for token classification tokens and labels (JSONL); for sentence embedding
    anchor, positive and, in all samples or none, negative; for image classification image and label, or a folder with a
    folder for each label.

    Raises:
        DataError: the file cannot be read, is empty, lacks a field, or has bad lines (the first ones are
            listed with file and line number). ConfigError: the task has no data format.
    """
    return task_named(task).read(path, fmt)


def read_named_samples(path: str | Path, task: str, fmt: str | None = None) -> list[Named[Sample]]:
    """The samples of a task as `read_samples` has them, with the adapters that the fields `adapter` name."""
    return task_named(task).read_named(path, fmt)


__all__ = [
    "ImageSample",
    "Named",
    "NumberSample",
    "PairSample",
    "Sample",
    "TextSample",
    "TokenSample",
    "digest",
    "labels_of",
    "read_named_samples",
    "read_samples",
    "read_texts",
    "split",
]
