"""A number, or several, for each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from edgelora.errors import DataError
from edgelora.inputs import TokenInputs
from edgelora.objectives import Array
from edgelora.objectives import Regression as RegressionObjective
from edgelora.records import Record, shown, text_field
from edgelora.samples import NoLabel, Sample
from edgelora.tasks.text import TextTask, text_encoder
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class NumberSample(NoLabel):
    """A text and the number, or the numbers, to predict from it."""

    text: str
    target: tuple[float, ...]

    def record(self) -> Any:
        return astuple(self)


class Regression(TextTask):
    """Mean squared error of the numbers `[rows, outputs]`."""

    name: ClassVar[str] = "regression"
    losses: ClassVar[tuple[str, ...]] = ("mse",)
    fields: ClassVar[tuple[str, ...]] = ("text", "label")

    def sample(self, record: Record, beside: Path) -> NumberSample:
        text, value = text_field(record, "text"), record.get("label")
        numbers = cast("list[Any]", value if isinstance(value, list) else [value])
        try:
            target = tuple(float(number) for number in numbers)
        except (TypeError, ValueError, OverflowError):
            target = ()
        if not target or not all(abs(number) <= _LARGEST for number in target):
            given = shown(cast(object, value))
            raise ValueError(f"the field 'label' must be a number that float32 holds, not {given}")
        return NumberSample(text, target)

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> RegressionObjective:
        encoder, numbers = text_encoder(model), [s for s in samples if isinstance(s, NumberSample)]
        widths = {len(s.target) for s in numbers}
        if len(widths) > 1:
            raise DataError(f"the targets have different numbers of values ({', '.join(map(str, sorted(widths)))})")
        targets = np.asarray([s.target for s in numbers], np.float32)
        return RegressionObjective(TokenInputs(encoder, encoder.tokens([s.text for s in numbers])), targets)

    def outputs(self, samples: Sequence[Sample]) -> int | None:
        first = samples[0] if samples else None
        return len(first.target) if isinstance(first, NumberSample) else None

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> Array:
        return model.outputs(inputs, adapter, adapters)["logits"]
