"""Reference operators: normalizations that ONNX's own evaluator gets wrong or has in float32 alone."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun


class LpNormalization(OpRun):
    """LpNormalization along axis 0 too, and of negative numbers for p = 1, which ONNX's own evaluator gets wrong."""

    def _run(self, x, *, axis, p):
        norm = np.linalg.norm(x, p, axis, keepdims=True)
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


class LRN(OpRun):
    """Local response normalization; ONNX's own evaluator fails where there are more channels than samples."""

    def _run(self, x, *, alpha, beta, bias, size):
        before, after = (size - 1) // 2, size // 2
        square = np.pad(x * x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        sums = sum(square[:, i : i + x.shape[1]] for i in range(size))
        return (x / (bias + alpha / size * sums) ** beta,)


class MeanVarianceNormalization(OpRun):
    """MeanVarianceNormalization in the type of its input; ONNX's own is a function of float32 alone."""

    def _run(self, x, axes=(0, 2, 3)):
        axes = tuple(axes)
        return ((x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-9),)


NORMALIZATIONS: tuple[type[OpRun], ...] = (LpNormalization, LRN, MeanVarianceNormalization)
