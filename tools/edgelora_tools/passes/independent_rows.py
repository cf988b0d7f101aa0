"""Whether the samples of a batch are blind to each other: then each may have an adapter of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelora_tools.gradients.shapes import dims
from edgelora_tools.measure_shapes import Sizes
from edgelora_tools.runner import open_session, sample_inputs

_TOLERANCE = 1e-6


def rows_are_independent(model: ir.Model, sizes: Sizes, batch: str) -> bool:
    """Run the model twice, with other samples behind the first: is all that it returns of the first the same?

    `sizes` are some at which it runs (measure_shapes.py), `batch` names the dimension of samples.
    """
    feeds = sample_inputs(model, sizes, np.random.default_rng(0))
    changed = sample_inputs(model, sizes, np.random.default_rng(1))
    for x in model.graph.inputs:
        name = str(x.name)
        if dims(x)[:1] == (batch,):
            changed[name][:1] = feeds[name][:1]
        else:
            changed[name] = feeds[name]
    with open_session(model) as session:
        first, second = session.run(None, feeds), session.run(None, changed)
    return all(
        dims(y)[:1] == (batch,) and _same(np.asarray(a)[:1], np.asarray(b)[:1])
        for y, a, b in zip(model.graph.outputs, first, second, strict=True)
    )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=0, atol=_TOLERANCE * max(1.0, float(np.abs(a).max(initial=0)))))
