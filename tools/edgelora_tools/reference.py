"""ONNX's reference evaluator, exact in float64: operators that it rounds or gets wrong are put right here.

It is the oracle of the gradient rules: slow, and the operator specification itself.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_conv_transpose


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


class ConvTranspose(op_conv_transpose.ConvTranspose):
    """ConvTranspose group by group; ONNX's own evaluator fails on most shapes with several groups."""

    def _run(self, x, w, b=None, *, group=1, **attributes):
        parts = zip(np.split(x, group, axis=1), np.split(w, group, axis=0), strict=True)
        y = np.concatenate([super(ConvTranspose, self)._run(*part, group=1, **attributes)[0] for part in parts], axis=1)
        return (y if b is None else y + b.reshape(-1, *[1] * (x.ndim - 2)),)


OPERATORS: tuple[type[OpRun], ...] = (ConvTranspose, Erf, Gelu)


def evaluator(model: ir.Model) -> ReferenceEvaluator:
    """ONNX's reference evaluator for `model`, exact in float64."""
    return ReferenceEvaluator(ir.to_proto(model), new_ops=list(OPERATORS))
