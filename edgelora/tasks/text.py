"""What the tasks on texts share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgelora.errors import ConfigError
from edgelora.records import adapter_field, parse_records, source_name, text_field
from edgelora.samples import Named
from edgelora.tasks.base import Task
from edgelora.text import TextEncoder

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model


class TextTask(Task):
    """A task whose inputs are texts."""

    inputs_name: ClassVar[str] = "texts"

    def read_inputs(self, path: str | Path, fmt: str | None = None) -> list[Named[Any]]:
        lines = parse_records(path, fmt, lambda record: (text_field(record, "text"), adapter_field(record)), ("text",))
        return [Named(text, adapter, f"{source_name(path)}, line {line}") for line, (text, adapter) in lines]

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        predicted = self.predict(model, inputs, adapter, adapters)
        return [
            {"text": text, "prediction": one.tolist() if isinstance(one, np.ndarray) else one}
            for text, one in zip(inputs, predicted, strict=True)
        ]


def text_encoder(model: Model) -> TextEncoder:
    """The model's encoder of texts.

    Raises:
        ConfigError: it takes no texts.
    """
    if not isinstance(model.encoder, TextEncoder):
        raise ConfigError("this bundle takes arrays, not text: build an objective from edgelora.objectives")
    return model.encoder


def read_texts(path: str | Path, fmt: str | None = None) -> list[str]:
    """The field `text` of every record. Raises DataError as `Task.read` does."""
    return [text for _, text in parse_records(path, fmt, lambda record: text_field(record, "text"), ("text",))]
