"""What is common to the samples of all tasks: their labels, their digest, and how they are split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConfigError, DataError

T = TypeVar("T")


class Sample(Protocol):
    """One labelled example. Each task's own kind stands beside its reader."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that it names."""
        ...

    @property
    def stratum(self) -> str:
        """What a split shares out evenly: the label of a sample that has one, else ""."""
        ...

    def record(self) -> Any:
        """All that a training depends on, JSON-able: of a file its name and the sha256 of its content.

        Raises:
            DataError: the file cannot be read.
        """
        ...


class OneLabel:
    """What samples are that have a field `label`."""

    label: str

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,)

    @property
    def stratum(self) -> str:
        return self.label


class NoLabel:
    """What samples are that name no class."""

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    @property
    def stratum(self) -> str:
        return ""


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class Named(Generic[T]):
    """What a record holds, the adapter that it names (field `adapter`), and where it stands: file and line."""

    content: T
    adapter: str | None
    where: str


def digest(samples: Sequence[Sample]) -> str:
    """sha256 of the samples, in their order."""
    body = json.dumps([sample.record() for sample in samples], ensure_ascii=False)
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


def labels_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The labels that occur, sorted."""
    return tuple(sorted({label for sample in samples for label in sample.labels}))


def label_index(samples: Sequence[Sample], labels: tuple[str, ...] | None) -> dict[str, int]:
    """The number of each label of an adapter.

    Raises:
        DataError: the samples have labels that the adapter does not know.
    """
    index = {label: i for i, label in enumerate(labels or ())}
    unknown = [label for label in labels_of(samples) if label not in index]
    if unknown:
        raise DataError(f"labels that the adapter does not know: {', '.join(unknown)}; it knows {', '.join(index)}")
    return index


def split(samples: Sequence[S], share: float, rng: np.random.Generator) -> tuple[list[S], list[S]]:
    """(training, held out), each in the order of `samples`: `share` of each stratum, at least one of either side
    where it has two samples; a stratum of one is trained, and so is one sample at least of each label.

    Raises:
        ConfigError: the share is not in (0, 1), or nothing would be left on one side.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the validation split must be above 0 and below 1, not {share}")
    groups: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(sample.stratum, []).append(row)
    held: list[int] = []
    for stratum in sorted(groups):
        rows: NDArray[np.int64] = rng.permutation(np.asarray(groups[stratum]))
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held += [int(row) for row in rows[:count]]
    chosen = set(held)
    learned = {label for row, sample in enumerate(samples) if row not in chosen for label in sample.labels}
    for row in sorted(held):
        if not learned.issuperset(samples[row].labels):
            chosen.remove(row)
            learned.update(samples[row].labels)
    train = [s for row, s in enumerate(samples) if row not in chosen]
    if not train or not chosen:
        count = "1 sample is" if len(samples) == 1 else f"{len(samples)} samples are"
        raise ConfigError(
            f"{count} too few to hold out {share:g} of: give more, two of a label at least (a plain text is a sample "
            "for each page or so), or hold out none"
        )
    return train, [samples[row] for row in sorted(chosen)]
