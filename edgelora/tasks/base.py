"""What the package asks of a task: how its data are read, what is trained, and what a prediction is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgelora.errors import ConfigError
from edgelora.objectives import Objective
from edgelora.records import Record, adapter_field, parse_records, source_name
from edgelora.samples import Named, Sample, labels_of
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


_OF_TOKENS = ("max_length", "truncate", "packing")  # settings of a language model's rows


class Task(ABC):
    """A task of a bundle. It holds nothing: one object serves all.

    A task without `fields` reads no labelled data, one without `losses` has no objective of its own: they leave
    `sample` and `objective_of` out.

    `losses` are those of the task, the first of which is taken unless another is asked for. `fields` are those that a
    labelled record must have, `augmentations` what its training data can be varied by (`TrainingConfig.augment`).
    A head has a row for each class where `has_classes`, of which an adapter needs `least_classes`; `outputs` says how
    many it has otherwise. `inputs_name` is what messages call the inputs. Settings of rows of tokens are for one that
    `reads_tokens`.
    """

    name: ClassVar[str]
    losses: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[tuple[str, ...]] = ()
    augmentations: ClassVar[tuple[str, ...]] = ()
    has_classes: ClassVar[bool] = False
    least_classes: ClassVar[int] = 2
    inputs_name: ClassVar[str] = "inputs"
    reads_tokens: ClassVar[bool] = False

    # --- data -------------------------------------------------------------------------------------------------

    def sample(self, record: Record, beside: Path) -> Sample:
        """The sample that a record of a file in the folder `beside` holds. ValueError says what is wrong with it."""
        raise NotImplementedError

    def read(self, path: str | Path, fmt: str | None = None) -> list[Sample]:
        """The samples of a file, of a folder where the task reads folders, or of standard input ("-").

        Raises:
            DataError: what is wrong, by file and line. ConfigError: the task has no data format.
        """
        beside = self._folder(path)
        found = parse_records(path, fmt, lambda record: self.sample(record, beside), self.fields)
        return self.checked(path, [sample for _, sample in found])

    def read_named(self, path: str | Path, fmt: str | None = None) -> list[Named[Sample]]:
        """The samples as `read` has them, with the adapters that the fields `adapter` name."""
        beside = self._folder(path)

        def parse(record: Record) -> tuple[Sample, str | None]:
            return self.sample(record, beside), adapter_field(record)

        lines = parse_records(path, fmt, parse, self.fields)
        self.checked(path, [sample for _, (sample, _) in lines])
        return [Named(sample, adapter, f"{source_name(path)}, line {line}") for line, (sample, adapter) in lines]

    def _folder(self, path: str | Path) -> Path:
        """Where the paths in a file's records start from; in those of standard input, the working folder.

        Raises:
            ConfigError: the task has no data format.
        """
        if not self.fields:
            raise ConfigError(f"the task {self.name!r} has no data format of its own: train it through the Python API")
        return Path(path).parent

    def checked(self, path: str | Path, samples: list[Sample]) -> list[Sample]:
        """The samples, if they go together. Raises DataError."""
        return samples

    @abstractmethod
    def read_inputs(self, path: str | Path, fmt: str | None = None) -> list[Named[Any]]:
        """What to predict from, from a file of records. Raises as `read` does."""

    def given_inputs(self, words: Sequence[Named[str]]) -> list[Named[Any]]:
        """What to predict from, as named on the command line or by lines of standard input."""
        return list(words)

    # --- training ---------------------------------------------------------------------------------------------

    def objective(
        self, model: Model, samples: Sequence[Sample], labels: tuple[str, ...] | None, config: TrainingConfig
    ) -> Objective:
        """The objective of these samples.

        Raises:
            DataError: a label that the adapter does not know. ConfigError: the bundle does not take such inputs, or the
                task has no such loss or augmentation.
        """
        if not self.losses:
            raise ConfigError(
                f"the task {self.name} has no loss of its own: build an objective from edgelora.objectives"
            )
        loss = config.loss or self.losses[0]
        if loss not in self.losses:
            raise ConfigError(f"the task {self.name} has no loss {loss!r}; it has {', '.join(self.losses)}")
        if not self.reads_tokens and (given := [name for name in _OF_TOKENS if getattr(config, name)]):
            raise ConfigError(f"{', '.join(given)} is for language models, not for {self.name}: leave it out")
        if config.class_weight and not self.has_classes:
            raise ConfigError(f"class_weight is for classes, and {self.name} has none: leave it out")
        if strange := [name for name in config.augment if name not in self.augmentations]:
            had = f"it has {', '.join(self.augmentations)}" if self.augmentations else "it has none"
            raise ConfigError(f"the task {self.name} has no augmentation {', '.join(strange)}; {had}")
        return self.objective_of(model, samples, labels, config, loss)

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Objective:
        """The objective, with a loss and augmentations that the task has."""
        raise NotImplementedError

    def classes(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """The classes that the samples name, in the order in which a new head has them."""
        return labels_of(samples)

    def outputs(self, samples: Sequence[Sample]) -> int | None:
        """How many outputs a head has for these samples, where these are no classes."""
        return None

    # --- predictions ------------------------------------------------------------------------------------------

    @abstractmethod
    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> Any:
        """What `Model.predict` returns."""

    @abstractmethod
    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        """A JSON-able prediction for each input, which it begins with."""

    def shown(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result in few words, for a table."""
        return dict(result)


def shown_input(raw: Any) -> str | None:
    """How a result names its input: a text, or a file's path; bytes and arrays have no name."""
    return str(raw) if isinstance(raw, str | Path) else None
