"""Convolutions and pools by their definition, in the type of their input, for ONNX's reference evaluator.

Its own disagree with the operators' specification, with ONNX Runtime and with torch: where ceil_mode lets a
window hang over the end they move half of the overhang to the front; auto_pad forgets dilations, and may not
stand beside ceil_mode; ConvTranspose fails on groups, and on an output_shape beside pads; GlobalMaxPool on one
axis. There are none of GlobalLpPool and MaxRoiPool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Ints = Sequence[int]


def places(
    sizes: Ints, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints, auto_pad: str, ceil_mode: int
) -> list[tuple[int, int, int]]:
    """How many pixels stand before and after each axis, and how many places the window takes on it."""
    found = []
    for i, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        reach = d * (k - 1) + 1
        if auto_pad.startswith("SAME"):
            out = -(-size // s)
            total = max((out - 1) * s + reach - size, 0)
            before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            found.append((before, total - before, out))
            continue
        before, after = (0, 0) if auto_pad == "VALID" else (pads[i], pads[i + len(sizes)])
        room = size + before + after - reach
        out = room // s + 1
        if ceil_mode and room % s and out * s < size + before:  # the last window begins before the end
            out += 1
        found.append((before, after, out))
    return found


def windows(
    x: np.ndarray, kernel: Ints, strides: Ints, dilations: Ints, at: Sequence[tuple[int, int, int]], fill: float
) -> np.ndarray:
    """What the window sees at each place: [N, C, places…, kernel…]."""
    overhang = [
        max(0, (out - 1) * s + d * (k - 1) + 1 - before - size)
        for size, k, s, d, (before, _, out) in zip(x.shape[2:], kernel, strides, dilations, at, strict=True)
    ]
    pads = [(before, end) for (before, _, _), end in zip(at, overhang, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    index: list[Any] = [slice(None), slice(None)]
    axes = len(kernel)
    for i, (k, s, d, (_, _, out)) in enumerate(zip(kernel, strides, dilations, at, strict=True)):
        places_and_taps = np.arange(out)[:, None] * s + np.arange(k) * d
        shape = [1] * (2 * axes)
        shape[i], shape[axes + i] = out, k
        index.append(places_and_taps.reshape(shape))
    return padded[tuple(index)]


def _defaults(axes: int, *lists: Ints | None) -> list[Ints]:
    return [[1] * axes if given is None else given for given in lists]


class Conv(OpRun):
    """The sum over the window's places, group by group."""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None):
        axes, groups = x.ndim - 2, group or 1
        strides, dilations = _defaults(axes, strides, dilations)
        at = places(x.shape[2:], w.shape[2:], strides, dilations, pads or [0] * 2 * axes, auto_pad or "NOTSET", 0)
        seen = windows(x, w.shape[2:], strides, dilations, at, 0.0)
        kernel_axes = list(range(2 + axes, 2 + 2 * axes))
        parts = [
            np.tensordot(s, v, axes=([1, *kernel_axes], [1, *range(2, w.ndim)]))
            for s, v in zip(np.split(seen, groups, axis=1), np.split(w, groups, axis=0), strict=True)
        ]
        y = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
        return (y if b is None else y + b.reshape(-1, *[1] * axes),)


class ConvTranspose(OpRun):
    """Each pixel adds a kernel to the image, which is then cut."""

    def _run(
        self,
        x,
        w,
        b=None,
        auto_pad=None,
        dilations=None,
        group=None,
        kernel_shape=None,
        output_padding=None,
        output_shape=None,
        pads=None,
        strides=None,
    ):
        axes, groups, sizes, kernel = x.ndim - 2, group or 1, x.shape[2:], w.shape[2:]
        strides, dilations = _defaults(axes, strides, dilations)
        extra = output_padding or [0] * axes
        full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(sizes, strides, dilations, kernel, strict=True)]
        wide = np.zeros((x.shape[0], w.shape[1] * groups, *full), x.dtype)
        for tap in np.ndindex(*kernel):
            hit = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilations, sizes, strides, strict=True)
            )
            parts = [
                np.moveaxis(np.tensordot(v[(..., *tap)], u, axes=(0, 1)), 0, 1)
                for u, v in zip(np.split(x, groups, axis=1), np.split(w, groups, axis=0), strict=True)
            ]
            wide[(slice(None), slice(None), *hit)] += np.concatenate(parts, axis=1)
        auto = (auto_pad or "NOTSET").startswith("SAME")
        for i in range(axes):
            length = full[i] + extra[i]
            if output_shape or auto:
                out = output_shape[-axes:][i] if output_shape else sizes[i] * strides[i]
                total = max(length - out, 0)
                before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
                out = out if output_shape else length - total
            else:
                given = [0] * 2 * axes if pads is None or auto_pad == "VALID" else pads
                before, out = given[i], length - given[i] - given[i + axes]
            wide = np.take(
                np.pad(wide, _at_end(wide.ndim, i + 2, before + out)), range(before, before + out), axis=i + 2
            )
        return (wide if b is None else wide + b.reshape(-1, *[1] * axes),)


def _at_end(rank: int, axis: int, count: int) -> list[tuple[int, int]]:
    return [(0, count if a == axis else 0) for a in range(rank)]


class _Pool(OpRun):
    def _seen(self, x, fill, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode):
        """The windows as [N, C, places…, taps], and the places."""
        axes = x.ndim - 2
        strides, dilations = _defaults(axes, strides, dilations)
        at = places(
            x.shape[2:], kernel_shape, strides, dilations, pads or [0] * 2 * axes, auto_pad or "NOTSET", ceil_mode or 0
        )
        seen = windows(x, kernel_shape, strides, dilations, at, fill)
        return seen.reshape(*seen.shape[: 2 + axes], -1), at


class MaxPool(_Pool):
    """The largest in the window, and its flat place in the whole tensor."""

    def _run(
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        dilations=None,
        kernel_shape=None,
        pads=None,
        storage_order=None,
        strides=None,
    ):
        how = (kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        seen, _ = self._seen(x, -np.inf, *how)
        y = seen.max(axis=-1)
        if len(self.output) == 1:
            return (y,)
        flat = np.arange(x[0, 0].size).reshape(x.shape[2:], order="F" if storage_order else "C")
        offset = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * (x.ndim - 2)) * flat.size
        positions, _ = self._seen(flat + offset, -1, *how)
        best = seen.argmax(axis=-1)[..., None]
        return y, np.take_along_axis(positions, best, axis=-1)[..., 0]


class AveragePool(_Pool):
    """The mean of what the window sees of the image, or, with count_include_pad, of the padded image."""

    def _run(
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        count_include_pad=None,
        dilations=None,
        kernel_shape=(),
        pads=None,
        strides=None,
    ):
        seen, at = self._seen(x, 0.0, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
        if count_include_pad:
            strides, dilations = _defaults(x.ndim - 2, strides, dilations)
            ones = np.pad(ones, [(0, 0), (0, 0), *((before, after) for before, after, _ in at)], constant_values=1)
            at = [(0, 0, out) for _, _, out in at]
            counted = windows(ones, kernel_shape, strides, dilations, at, 0.0)
            counted = counted.reshape(*counted.shape[: x.ndim], -1)
        else:
            counted, _ = self._seen(ones, 0.0, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        return (seen.sum(axis=-1) / counted.sum(axis=-1),)


class LpPool(_Pool):
    """The p-norm of what the window sees."""

    def _run(
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        dilations=None,
        kernel_shape=None,
        p=2,
        pads=None,
        strides=None,
    ):
        seen, _ = self._seen(x, 0.0, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        return ((np.abs(seen) ** p).sum(axis=-1) ** (1 / p),)


class GlobalMaxPool(OpRun):
    """The largest of each channel."""

    def _run(self, x):
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(OpRun):
    """The p-norm of each channel."""

    def _run(self, x, p=2):
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class MaxUnpool(OpRun):
    """Zeros, and X at its flat positions in the output, as ONNX Runtime and torch have it.

    ONNX's own evaluator counts the positions in a smaller output where output_shape gives a larger one.
    """

    def _run(self, x, positions, output_shape=None, kernel_shape=(), pads=None, strides=None):
        axes = x.ndim - 2
        (strides,) = _defaults(axes, strides)
        pads = pads or [0] * 2 * axes
        sizes = zip(x.shape[2:], kernel_shape, strides, pads[:axes], pads[axes:], strict=True)
        shape = [*x.shape[:2], *((n - 1) * s + k - before - after for n, k, s, before, after in sizes)]
        y = np.zeros(shape if output_shape is None else output_shape, x.dtype)
        y.reshape(-1)[positions] = x
        return (y,)


class MaxRoiPool(OpRun):
    """The largest in each bin of a region, 0 where the bin is empty."""

    def _run(self, x, rois, pooled_shape=(), spatial_scale=1.0):
        y = np.zeros((len(rois), x.shape[1], *pooled_shape), x.dtype)
        corners = rois[:, 1:] * np.asarray(spatial_scale, rois.dtype)
        corners = np.sign(corners) * np.floor(np.abs(corners) + 0.5)
        for region, (left, top, right, bottom) in enumerate(corners):
            spans = [(top, bottom, x.shape[2]), (left, right, x.shape[3])]
            bins = [self._bins(*span, count) for span, count in zip(spans, pooled_shape, strict=True)]
            for (i, rows), (j, columns) in product(enumerate(bins[0]), enumerate(bins[1])):
                seen = x[int(rois[region, 0]), :, rows, columns]
                if seen.size:
                    y[region, :, i, j] = seen.max(axis=(1, 2))
        return (y,)

    @staticmethod
    def _bins(first, last, size, count):
        step = np.maximum(last - first + 1, 1) / count
        edges = [(first + np.floor(i * step), first + np.ceil((i + 1) * step)) for i in range(count)]
        return [slice(*(int(np.clip(edge, 0, size)) for edge in pair)) for pair in edges]


WINDOWS: tuple[type[OpRun], ...] = (
    AveragePool,
    Conv,
    ConvTranspose,
    GlobalLpPool,
    GlobalMaxPool,
    LpPool,
    MaxPool,
    MaxRoiPool,
    MaxUnpool,
)
"""The operators of this module."""
