"""Whether a model's tokens are blind to padding: then it need not be computed at all."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelora_tools.gradients.shapes import dims
from edgelora_tools.measure_shapes import dimension_names
from edgelora_tools.passes.rows import MASK
from edgelora_tools.runner import open_session, sample_inputs

_BATCH, _LENGTH, _TOLERANCE = 4, 11, 1e-6


def ignores_padding(model: ir.Model, first_too: bool) -> bool:
    """Run the model twice, with other tokens where `attention_mask` is 0: is the rest of its outputs the same?

    `first_too` counts the first token of each sample among the rest, as pooling "cls" reads it.
    """
    mask = next((x for x in model.graph.inputs if x.name == MASK and x.shape is not None and len(x.shape) == 2), None)
    if mask is None or not all(isinstance(d, str) for d in dims(mask)):
        return False
    batch, length = (str(d) for d in dims(mask))
    sizes = dict.fromkeys(dimension_names(model), 3) | {batch: _BATCH, length: _LENGTH}
    feeds = sample_inputs(model, sizes, np.random.default_rng(0))
    others = sample_inputs(model, sizes, np.random.default_rng(1))
    kept = np.arange(_LENGTH) < np.array([_LENGTH, 7, 4, 1])[:, None]
    feeds[MASK] = kept.astype(feeds[MASK].dtype)
    changed = dict(feeds)
    for x in model.graph.inputs:
        name = str(x.name)
        if name != MASK and dims(x)[:2] == dims(mask):
            keep = kept.reshape(*kept.shape, *[1] * (feeds[name].ndim - 2))
            changed[name] = np.where(keep, feeds[name], others[name])
    with open_session(model) as session:
        first, second = session.run(None, feeds), session.run(None, changed)
    return all(_same(np.asarray(a), np.asarray(b), kept) for a, b in zip(first, second, strict=True))


def _same(a: np.ndarray, b: np.ndarray, kept: np.ndarray) -> bool:
    """Whether two outputs agree, at the kept tokens where they have tokens."""
    if a.shape[:2] == kept.shape:
        a, b = a[kept], b[kept]
    return bool(np.allclose(a, b, rtol=0, atol=_TOLERANCE * max(1.0, float(np.abs(a).max()))))
