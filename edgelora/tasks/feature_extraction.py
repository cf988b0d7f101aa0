"""The base's own outputs, for a loss that the caller brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from edgelora.objectives import Array
from edgelora.tasks.text import TextTask

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


class FeatureExtraction(TextTask):
    """Raw outputs by name. There is neither labelled data nor a loss."""

    name: ClassVar[str] = "feature-extraction"

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> dict[str, Array]:
        return model.outputs(inputs, adapter, adapters)

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        outputs = self.predict(model, inputs, adapter, adapters)
        return [{"text": t, **{k: v[i].tolist() for k, v in outputs.items()}} for i, t in enumerate(inputs)]
