"""Resampling operators of the reference evaluator, exact in float64 and as the runtimes have them."""

from __future__ import annotations

from itertools import product

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_resize


class Resize(op_resize.Resize):
    """Resize along axes that are counted from the end too; ONNX's own evaluator fails there."""

    def _run(self, x, *inputs, axes=None, **attributes):
        return super()._run(x, *inputs, axes=None if axes is None else [a % x.ndim for a in axes], **attributes)


class GridSample(OpRun):
    """GridSample with points in the type of the grid; ONNX's own evaluator rounds them to float32.

    Cubic interpolation at a point outside pads its taps and leaves the point, as ONNX Runtime and torch
    do; ONNX's own evaluator moves the point to the border first.
    """

    def _run(self, x, grid, mode=None, padding_mode=None, align_corners=None):
        points = np.moveaxis(grid, -1, 0)[::-1]
        taps = [
            self._taps(u, size, mode, padding_mode, align_corners) for u, size in zip(points, x.shape[2:], strict=True)
        ]
        image = np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 2))
        y = np.zeros((*grid.shape[:-1], x.shape[1]), x.dtype)
        for corner in product(*taps):
            weight = np.prod([w for _, w in corner], axis=0)
            y += weight[..., None] * np.moveaxis(x, 1, -1)[image, *(i for i, _ in corner)]
        return (np.moveaxis(y, -1, 1),)

    def _taps(self, u, size, mode, padding, align):
        """The places that normalized coordinates read along an axis of `size`, with their weights."""
        low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
        at = (u + 1) / 2 * (high - low) + low
        if mode == "nearest":
            taps = [(np.rint(at), np.ones_like(at))]
        elif mode in ("linear", "bilinear"):
            at = self._pad(at, low, high, size, padding) if padding != "zeros" else at
            i = np.floor(at)
            taps = [(i, i + 1 - at), (i + 1, at - i)]
        else:
            i = np.floor(at)
            taps = [(j, self._cubic(abs(at - j))) for j in (i - 1, i, i + 1, i + 2)]
        if padding == "zeros":
            taps = [(i, w * ((i >= 0) & (i < size))) for i, w in taps]
        return [(self._pad(i, low, high, size, padding).astype(int), w) for i, w in taps]

    @staticmethod
    def _pad(at, low, high, size, padding):
        while padding == "reflection" and high > low and np.any((at < low) | (at > high)):
            at = np.where(at < low, 2 * low - at, np.where(at > high, 2 * high - at, at))
        return np.clip(at, 0, size - 1)

    @staticmethod
    def _cubic(t, a=-0.75):
        """Keys' kernel at the distance t."""
        near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        return np.where(t <= 1, near, far)


class AffineGrid(OpRun):
    """AffineGrid in the type of theta; ONNX's own evaluator rounds it to float32."""

    def _run(self, theta, size, align_corners=None):
        sizes = [int(n) for n in size[2:]]
        ends = [(n - 1) / n if not align_corners else 1.0 for n in sizes]
        places = [np.linspace(-end, end, n, dtype=theta.dtype) for end, n in zip(ends, sizes, strict=True)]
        ones = np.ones(sizes, theta.dtype)
        points = np.stack([*np.meshgrid(*places, indexing="ij")[::-1], ones], axis=-1)
        return (np.einsum("...j,nij->n...i", points, theta),)


class DeformConv(OpRun):
    """DeformConv in the type of its input; ONNX's own evaluator rounds the places that it reads to float32."""

    def _run(
        self,
        x,
        w,
        offset,
        b=None,
        mask=None,
        dilations=None,
        group=1,
        kernel_shape=None,
        offset_group=1,
        pads=None,
        strides=None,
    ):
        axes, out = x.ndim - 2, offset.shape[2:]
        kernel, steps, spread = w.shape[2:], strides or [1] * axes, dilations or [1] * axes
        shift = offset.reshape(len(x), offset_group, *kernel, axes, *out)
        factor = np.ones((len(x), offset_group, *kernel, *out), x.dtype) if mask is None else mask
        factor = factor.reshape(len(x), offset_group, *kernel, *out)
        y = np.zeros((len(x), len(w), *out), x.dtype)
        for n, o, c in product(range(len(x)), range(len(w)), range(w.shape[1])):
            channel = o // (len(w) // group) * w.shape[1] + c
            g = channel // (x.shape[1] // offset_group)
            for k, p in product(np.ndindex(*kernel), np.ndindex(*out)):
                begin = [p[a] * steps[a] + k[a] * spread[a] - (pads[a] if pads else 0) for a in range(axes)]
                at = shift[(n, g, *k, slice(None), *p)] + begin
                value = self._read(x[n, channel], at)
                y[(n, o, *p)] += w[(o, c, *k)] * factor[(n, g, *k, *p)] * value
        return (y if b is None else y + b.reshape(-1, *[1] * axes),)

    @staticmethod
    def _read(image, at):
        """The image, zero outside, interpolated at a place."""
        value, low = 0.0, np.floor(at).astype(int)
        for corner in product((0, 1), repeat=image.ndim):
            pixel = low + corner
            if np.all((pixel >= 0) & (pixel < image.shape)):
                value += image[tuple(pixel)] * np.prod(1 - np.abs(at - pixel))
        return value


RESAMPLING: tuple[type[OpRun], ...] = (AffineGrid, DeformConv, GridSample, Resize)
