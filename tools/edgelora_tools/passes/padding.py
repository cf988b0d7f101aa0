"""Whether a model's tokens are blind to padding: then it need not be computed at all."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelora_tools.gradients.shapes import dims
from edgelora_tools.measure_shapes import Sizes
from edgelora_tools.passes.rows import MASK, token_mask
from edgelora_tools.runner import open_session, sample_inputs

_TOLERANCE = 1e-6


def ignores_padding(model: ir.Model, sizes: Sizes) -> bool:
    """Run the model twice, with other tokens where `attention_mask` is 0: is the rest of its outputs the same?

    `sizes` are some at which it runs (measure_shapes.py).
    """
    mask = token_mask(model)
    if mask is None:
        return False
    batch, length = (sizes[str(d)] for d in dims(mask))
    feeds = sample_inputs(model, sizes, np.random.default_rng(0))
    others = sample_inputs(model, sizes, np.random.default_rng(1))
    kept = np.arange(length) < np.linspace(length, 1, batch).round()[:, None]
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
