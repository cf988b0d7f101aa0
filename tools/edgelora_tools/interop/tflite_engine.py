"""A bundle's predictions by TFLite's interpreter, on the file that it was made from with an adapter in its weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelora.active import ActiveAdapter
from edgelora.bundle import Bundle
from edgelora.errors import ConversionError
from edgelora.mixing import Batch, plan_batches
from edgelora.objectives import Array, Feeds, Inputs
from edgelora.parity import expected_outputs, parity_samples
from edgelora.runtime import Model
from edgelora_tools.compile import AS_IT_IS
from edgelora_tools.interop.tflite_file import MergedFile, merged_file
from edgelora_tools.methods.base import Floats
from edgelora_tools.sources.tflite import original_of
from edgelora_tools.sources.tflite.interpreter import interpreter_module

_KEPT = 4  # interpreters, each with a file of its own


class Engine:
    """The interpreter on a merged file, and what a bundle makes of its outputs: a pooled vector, a head, as it is."""

    def __init__(self, bundle: Bundle, merged: MergedFile) -> None:
        self.manifest = bundle.manifest
        self._outputs: list[str] = self.manifest.source["outputs"]
        self._original = original_of(
            merged.content, bundle.manifest.name, self._outputs, bundle.manifest.task != AS_IT_IS
        )

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs that the manifest lists, of a batch, from the model's inputs and the head."""
        head = self.manifest.head
        own = {} if head is None else {name: feeds[name] for name in (head.weight, head.bias)}
        inputs = {spec.name: feeds[spec.name] for spec in self.manifest.inputs}
        made = self._original.run({**inputs, **self._fixed()})
        outputs = expected_outputs(self.manifest, inputs, {name: made[name] for name in self._outputs}, own)
        return {spec.name: np.asarray(outputs[spec.name], spec.dtype) for spec in self.manifest.outputs}

    def _fixed(self) -> Feeds:
        """The inputs that were settled when the source was converted."""
        shapes = self._original.input_shapes()
        settled = self.manifest.source.get("fixed", {})
        return {name: np.full(shapes[name], value) for name, value in settled.items() if name in shapes}


def difference(bundle: Bundle, graphs: str, feeds: Mapping[str, Floats], merged: MergedFile) -> float | None:
    """How far the merged file in the interpreter is from the bundle with the adapter, relative to the largest value.

    On the samples that parity was recorded on; None where there is no interpreter.

    Raises:
        ConversionError: the interpreter refuses the file.
    """
    try:
        interpreter_module()
    except ConversionError:
        return None
    engine, forward, worst = Engine(bundle, merged), bundle.forward_in(graphs), 0.0
    for inputs, _ in parity_samples(bundle):
        ours, theirs = forward.run({**inputs, **feeds}), engine.run({**inputs, **feeds})
        for name, y in theirs.items():
            wanted, made = (np.asarray(one, np.float64) for one in (ours[name], y))
            gap = np.abs(made - wanted).max(initial=0.0)
            worst = max(worst, float(gap / max(np.abs(wanted).max(initial=0.0), 1e-12)))
    return worst


class InterpreterModel(Model):
    """A model whose graph runs in TFLite's interpreter; adapters go into the weights of `original`, one file each."""

    def __init__(self, model: Model, original: Path) -> None:
        super().__init__(model.bundle, model.store)
        self.original = original
        self._engines: OrderedDict[Hashable, Engine] = OrderedDict()

    def _run(
        self, inputs: Inputs, batch: Batch, active: Mapping[Hashable, ActiveAdapter]
    ) -> list[tuple[NDArray[np.int64], dict[str, Array]]]:
        parts = []
        for one in plan_batches(batch.keys, len(batch.rows), 0):
            rows = np.array([batch.rows[i] for i in one.rows])
            (key,) = set(one.keys)
            parts.append((rows, self._engine(key, active[key]).run({**inputs.feeds(rows), **active[key].feeds})))
        return parts

    def _engine(self, key: Hashable, adapter: ActiveAdapter) -> Engine:
        found = self._engines.pop(key, None)
        if found is None:
            found = Engine(self.bundle, merged_file(self.bundle, adapter.graphs, adapter.feeds, self.original))
        self._engines[key] = found
        while len(self._engines) > _KEPT:
            self._engines.popitem(last=False)
        return found
