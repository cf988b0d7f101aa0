"""A constant of a TFLite file as real numbers, and real numbers as the file can store them in its place.

A weight in codes keeps its scales; where the new numbers exceed what its codes can stand for under a scale, that scale
grows until they fit, and the scale of a bias in codes, which is the product of input's and weight's, grows with it. The
errors of a channel's codes sum to less than a code: inputs are mostly positive, and errors of one sign would add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import AdapterError
from edgelora_tools.sources.tflite.model import Quantization, Tensor

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Stored:
    """What a constant is to hold: numbers of its type in its shape, and its scales. `growth` is new scale by old."""

    data: np.ndarray
    scale: np.ndarray | None
    growth: Doubles


def real_numbers(tensor: Tensor) -> Doubles:
    """The numbers that a dense constant stands for, in its layout."""
    assert tensor.data is not None
    numbers = tensor.data.astype(np.float64)
    if tensor.quantization is None or tensor.dtype.kind == "f":
        return numbers
    scale, zero = _along(tensor, tensor.quantization)
    return (numbers - zero) * scale


def stored(tensor: Tensor, wanted: Doubles) -> Stored:
    """`wanted` as the type of a weight `tensor` holds it; what it held already keeps its bits.

    Raises:
        AdapterError: numbers that its type cannot hold.
    """
    assert tensor.data is not None
    told, moved = tensor.quantization, wanted != real_numbers(tensor)
    if not np.isfinite(wanted).all():
        raise AdapterError(f"{tensor.name!r} would hold numbers that are not finite")
    if tensor.dtype.kind == "f":
        with np.errstate(over="ignore"):
            made = wanted.astype(tensor.dtype)
        if not np.isfinite(made).all():
            raise AdapterError(f"{tensor.name!r} would hold {np.abs(wanted).max():.3g}, too large for {tensor.dtype}")
        return Stored(np.where(moved, made, tensor.data), None, np.ones(1))
    if told is None or tensor.dtype not in (np.int8, np.uint8):
        raise AdapterError(f"{tensor.name!r} holds {tensor.dtype}, in which no weight is put")
    growth = _growth(tensor, told, wanted)
    scale = np.where(growth > 1, told.scale * growth, told.scale).astype(np.float32)
    growth = scale.astype(np.float64) / told.scale
    moved |= _spread(tensor, told, growth) != 1
    low, high = _range(tensor)
    places, zero = _along(tensor, Quantization(scale, told.zero, told.axis))
    exact = wanted / places + zero
    codes = np.where(moved, np.clip(np.rint(exact), low, high), tensor.data)
    for channel in np.moveaxis(np.arange(codes.size).reshape(codes.shape), _channel(tensor), 0):
        _balance(codes.reshape(-1), exact.reshape(-1), channel.reshape(-1), low, high)
    return Stored(codes.astype(tensor.dtype), scale, growth)


def _channel(tensor: Tensor) -> int:
    """The axis of the outputs: the last of a kernel in depth, `[1, h, w, channels]`, else the first."""
    return len(tensor.shape) - 1 if tensor.shape[0] == 1 and len(tensor.shape) == 4 else 0


def _balance(codes: Doubles, exact: Doubles, channel: NDArray[np.int64], low: int, high: int) -> None:
    """Round the nearest of a channel's codes the other way, until their sum is that of the exact ones."""
    gaps = exact[channel] - codes[channel]
    count = int(np.rint(gaps.sum()))
    sign = 1 if count > 0 else -1
    turned = channel[np.argsort(-sign * gaps, kind="stable")[: abs(count)]]
    codes[turned] = np.clip(codes[turned] + sign, low, high)


def stored_bias(tensor: Tensor, wanted: Doubles | None, growth: Doubles) -> Stored:
    """`wanted` (None: what it stands for now) as a bias holds it whose weight's scales grew by `growth`.

    Raises:
        AdapterError: numbers that its type cannot hold, or codes whose scale the file does not tell.
    """
    assert tensor.data is not None
    if tensor.dtype.kind == "f":
        return stored(tensor, real_numbers(tensor) if wanted is None else wanted)
    told = tensor.quantization
    if tensor.dtype != np.int32 or (told is None and wanted is not None):
        raise AdapterError(f"{tensor.name!r} holds {tensor.dtype}, in which no bias is put")
    if wanted is None and (growth == 1).all():
        return Stored(tensor.data, None if told is None else told.scale, growth)
    scales = np.ones(1) if told is None else told.scale.astype(np.float64)
    if scales.size != growth.size and growth.size != 1:
        raise AdapterError(f"{tensor.name!r} has one scale, and its weight several: their product cannot follow these")
    grown = scales * growth
    scale = None if told is None else grown.astype(np.float32)
    numbers = real_numbers(tensor) if wanted is None else wanted
    codes = np.rint(numbers / (grown if scale is None else scale.astype(np.float64)))
    limit = np.iinfo(np.int32).max
    if not (np.abs(codes) <= limit).all():
        raise AdapterError(f"{tensor.name!r} would hold codes beyond 32 bits")
    return Stored(codes.astype(np.int32), scale, growth)


def _growth(tensor: Tensor, told: Quantization, wanted: Doubles) -> Doubles:
    """By how much each scale must grow for codes of `wanted`; 1 where they fit."""
    low, high = _range(tensor)
    scale, zero = _along(tensor, told)
    codes = np.rint(wanted / scale) + zero
    exceeds = (codes > high) | (codes < low)
    room = np.where(wanted > 0, high - zero, zero - low)
    if (exceeds & (room <= 0)).any():
        raise AdapterError(f"{tensor.name!r} would hold numbers of a sign that its codes do not have")
    needed = np.where(exceeds, np.abs(wanted) / (scale * np.maximum(room, 1)), 1.0)
    if told.scale.size == 1:
        return needed.max(keepdims=True).reshape(1)
    return needed.max(axis=tuple(i for i in range(needed.ndim) if i != told.axis))


def _range(tensor: Tensor) -> tuple[int, int]:
    """The codes that a weight may have: int8 is symmetric, unless the file has -128 already."""
    assert tensor.data is not None
    info = np.iinfo(tensor.dtype)
    return (min(-info.max, int(tensor.data.min(initial=0))) if info.min < 0 else 0), int(info.max)


def _along(tensor: Tensor, told: Quantization) -> tuple[Doubles, Doubles]:
    """Scale and zero in the tensor's number of axes."""
    shape = [1] * len(tensor.shape)
    if told.scale.size != 1:
        shape[told.axis] = -1
    return told.scale.astype(np.float64).reshape(shape), told.zero.astype(np.float64).reshape(shape)


def _spread(tensor: Tensor, told: Quantization, growth: Doubles) -> Doubles:
    return _along(tensor, Quantization(growth, told.zero, told.axis))[0]
