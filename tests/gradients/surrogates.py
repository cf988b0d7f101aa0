"""Quantized operators without their rounding, in float64: what straight-through gradients are the derivatives of.

Codes are real numbers here. Saturation stays, half a code outside the range of the type, where rounding
would have it.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv

_FLOAT8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz)


def limits(dtype: type | np.dtype) -> tuple[float, float]:
    """The least and the greatest code of a type."""
    info = ml_dtypes.finfo(dtype) if np.dtype(dtype) in _FLOAT8 else ml_dtypes.iinfo(dtype)
    return float(info.min), float(info.max)


def _real(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def _spread(s: np.ndarray, x: np.ndarray, axis: int, block_size: int) -> np.ndarray:
    """Scales or zero points as an array that broadcasts against x."""
    s = np.asarray(s, np.float64)
    if s.size == 1:
        return s.reshape(())
    if block_size:
        return np.repeat(s, block_size, axis).take(range(x.shape[axis]), axis)
    return s.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


class QuantizeLinear(OpRun):
    """x/s + z, saturated."""

    def _run(self, x, s, z=None, axis=1, block_size=0, output_dtype=0, saturate=1, precision=0):
        dtype = np.dtype(
            z.dtype if z is not None else helper.tensor_dtype_to_np_dtype(output_dtype or TensorProto.UINT8)
        )
        low, high = limits(dtype)
        middle = 0.0 if z is None else _spread(z, x, axis, block_size)
        codes = x / _spread(s, x, axis, block_size) + middle
        return (np.clip(codes, low - 0.5, high + 0.5),)


class DequantizeLinear(OpRun):
    """s·(q − z)."""

    def _run(self, q, s, z=None, axis=1, block_size=0, output_dtype=0):
        middle = 0.0 if z is None else _spread(z, q, axis, block_size)
        return ((_real(q) - middle) * _spread(s, q, axis, block_size),)


class DynamicQuantizeLinear(OpRun):
    """x/s + z. The scale is rounded to 1e-7, so that it is constant over the step of a difference, as z is."""

    def _run(self, x):
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        s = np.round((high - low) / 255, 7)
        z = np.round(np.clip(-low / s, 0, 255))
        return x / s + z, np.float64(s), np.float64(z)


class MatMulInteger(OpRun):
    """(a − za)·(b − zb)."""

    def _run(self, a, b, za=None, zb=None):
        rows = np.zeros(()) if za is None else _real(za)
        rows = rows[:, None] if rows.ndim == 1 else rows
        return ((_real(a) - rows) @ (_real(b) - (0.0 if zb is None else _real(zb))),)


class ConvInteger(Conv):
    """(x − zx) ⋆ (w − zw)."""

    def _run(self, x, w, zx=None, zw=None, **attributes):  # pyright: ignore[reportIncompatibleMethodOverride]
        kernels = np.zeros(1) if zw is None else _real(zw)
        kernels = kernels.reshape(-1, *[1] * (w.ndim - 1))
        return super()._run(_real(x) - (0.0 if zx is None else _real(zx)), _real(w) - kernels, **attributes)


SURROGATES: tuple[type[OpRun], ...] = (
    QuantizeLinear,
    DequantizeLinear,
    DynamicQuantizeLinear,
    MatMulInteger,
    ConvInteger,
)
