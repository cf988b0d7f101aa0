"""ONNX's reference evaluator, exact in float64: operators that it rounds or gets wrong are put right here.

It is the oracle of the gradient rules: slow, and the operator specification itself.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_pad

from edgelora_tools.reference_normalization import NORMALIZATIONS
from edgelora_tools.reference_recurrent import RECURRENT
from edgelora_tools.reference_resampling import RESAMPLING
from edgelora_tools.reference_windows import WINDOWS


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


class Erf(OpRun):
    """Erf in the type of its input; ONNX's own evaluator rounds it to float32."""

    def _run(self, x):
        return (_erf(x),)


class Gelu(OpRun):
    """Gelu in the type of its input, for the same reason."""

    def _run(self, x, approximate="none"):
        if approximate == "tanh":
            return (x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,)
        return (x * (1 + _erf(x / math.sqrt(2))) / 2,)


class Pad(op_pad.Pad_18):
    """Pad with negative pads too, which cut off before the others add; ONNX's own evaluator refuses them."""

    def _run(self, x, pads, value=None, axes=None, mode="constant"):
        axes = range(x.ndim) if axes is None else axes
        cut: list[slice] = [slice(None)] * x.ndim
        for axis, before, after in zip(axes, *np.split(np.minimum(pads, 0), 2), strict=True):
            cut[axis] = slice(-before, x.shape[axis] + after)
        return super()._run(x[tuple(cut)], np.maximum(pads, 0), value, axes, mode)


class OneHot(OpRun):
    """OneHot with `off` for indices that are out of range, and with a depth `[1]`, which ONNX's own evaluator lacks."""

    def _run(self, indices, depth, values, axis=-1):
        count = int(np.asarray(depth).reshape(()))
        places = np.expand_dims(np.where(indices < 0, indices + count, indices), axis)
        along = np.arange(count).reshape([-1 if a == axis % places.ndim else 1 for a in range(places.ndim)])
        return (np.where(places == along, values[1], values[0]),)


class GatherElements(OpRun):
    """GatherElements along axes of any size; ONNX's own evaluator fails at more than 64 elements."""

    def _run(self, x, indices, axis=0):
        outer = tuple(slice(n) for n in indices.shape)
        cut = tuple(slice(None) if a == axis % x.ndim else part for a, part in enumerate(outer))
        return (np.take_along_axis(x[cut], indices, axis),)


OPERATORS: tuple[type[OpRun], ...] = (
    Erf,
    GatherElements,
    Gelu,
    OneHot,
    Pad,
    *NORMALIZATIONS,
    *RECURRENT,
    *RESAMPLING,
    *WINDOWS,
)


def evaluator(model: ir.Model, more: tuple[type[OpRun], ...] = ()) -> ReferenceEvaluator:
    """ONNX's reference evaluator for `model`, exact in float64; `more` are further operators to replace."""
    return ReferenceEvaluator(ir.to_proto(model), new_ops=[*OPERATORS, *more])
