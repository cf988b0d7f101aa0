"""Resampling operators of the reference evaluator, exact in float64 and as the runtimes have them."""

from __future__ import annotations

import math
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
            weight = math.prod(w for _, w in corner)
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


RESAMPLING: tuple[type[OpRun], ...] = (AffineGrid, GridSample, Resize)
