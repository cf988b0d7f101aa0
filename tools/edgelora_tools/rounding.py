"""Round a frozen matrix to codes in blocks: block by block at the least error, or each input making up for the last.

A block is some neighbouring inputs of one output. Its scale and zero point cover its numbers and 0, shrunk as far as
the sum of squares of the errors falls: what is clipped costs less than finer codes bring.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelora_tools.composites.block_product import Blocks

BLOCK = 32
_SHRUNK = {4: np.linspace(1, 0.7, 7), 8: np.ones(1)}
_DAMPING = 0.1  # of the mean of the diagonal: the backward pass multiplies by the matrix too, and not by X


def round_blocks(w: NDArray[np.float32], bits: int) -> Blocks:
    """W `[in, out]` rounded to the nearest codes."""
    inputs, outputs = w.shape
    count = -(-inputs // BLOCK)
    blocked = np.pad(w.T, ((0, 0), (0, count * BLOCK - inputs))).reshape(outputs, count, BLOCK)
    scale, zero = _fitted(blocked, bits)
    codes = _codes(blocked, scale[..., None], zero[..., None], bits)
    return Blocks(codes.reshape(outputs, -1).astype(np.uint8), scale, zero.astype(np.uint8), bits)


def round_for(w: NDArray[np.float32], x: NDArray[np.float32], bits: int) -> Blocks:
    """W `[in, out]` rounded for inputs like X `[rows, in]` (GPTQ, Frantar et al. 2022, arXiv:2210.17323).

    Input after input is rounded, and the error is made up for by those that follow, as far as X's correlations
    H = XᵀX let them: with U the upper factor of H⁻¹ = UᵀU, w_j −= (w_i − ŵ_i)/u_ii·u_ij.
    """
    inputs, outputs = w.shape
    count = -(-inputs // BLOCK)
    upper = _upper(x)
    left = w.T.copy()
    codes = np.zeros((outputs, count * BLOCK), np.uint8)
    scales, zeros = np.ones((outputs, count), np.float32), np.zeros((outputs, count), np.uint8)
    for block in range(count):
        start, stop = block * BLOCK, min(inputs, (block + 1) * BLOCK)
        scale, zero = _fitted(left[:, start:stop], bits)
        scales[:, block], zeros[:, block], codes[:, start : start + BLOCK] = scale, zero, zero[:, None]
        errors = np.zeros((outputs, stop - start), np.float32)
        for at, i in enumerate(range(start, stop)):
            q = _codes(left[:, i], scale, zero, bits)
            codes[:, i] = q
            errors[:, at] = (left[:, i] - (q - zero) * scale) / upper[i, i]
            left[:, i + 1 : stop] -= errors[:, at, None] * upper[i, i + 1 : stop]
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return Blocks(codes, scales, zeros, bits)


def _upper(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """U with (XᵀX + damping)⁻¹ = UᵀU."""
    h = (x.T @ x).astype(np.float64)
    h[np.diag_indices_from(h)] += max(_DAMPING * float(np.mean(np.diag(h))), 1e-12)
    return np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)


def _fitted(blocks: NDArray[np.float32], bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scale and the zero point of every block `[..., numbers]`."""
    top = 2**bits - 1
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    best, scale, zero = np.full(low.shape, np.inf), np.ones_like(low), np.zeros_like(low)
    for part in _SHRUNK[bits]:
        s = np.where(high > low, (high - low) * np.float32(part) / top, 1).astype(np.float32)
        z = np.clip(np.rint(-low * np.float32(part) / s), 0, top)
        q = _codes(blocks, s[..., None], z[..., None], bits)
        error = (((q - z[..., None]) * s[..., None] - blocks) ** 2).sum(-1)
        better = error < best
        best, scale, zero = np.where(better, error, best), np.where(better, s, scale), np.where(better, z, zero)
    return scale, zero


def _codes(
    w: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.float32], bits: int
) -> NDArray[np.float32]:
    return np.clip(np.rint(w / scale) + zero, 0, 2**bits - 1)
