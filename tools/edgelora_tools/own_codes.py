"""Codes of 4 bits that a matrix was made of, told by its numbers alone.

A file of codes (GGUF's Q4_0, Q4_1 and Q4_K; what AWQ and GPTQ store) is read as real numbers, whose rows may have been
put into another order since. A block of them lies on at most 16 places that are equally far apart, as trained numbers
do not: from these the codes are had again as they were, and nothing is rounded a second time. Blocks that lie so by
themselves, of one number or with all but one pruned away, have codes that stand for them as exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelora_tools.composites.block_product import Blocks
from edgelora_tools.rounding import BLOCK

_BITS = 4
_TOP = 2**_BITS - 1
_EXACT = 4e-7  # of a block's largest number: what float32 rounds when a code is decoded
_TRIED = 64  # blocks, before all of a matrix is looked at


@np.errstate(all="ignore")  # where a step is no number of float32, it fits nothing
def own_codes(w: NDArray[np.float32]) -> Blocks | None:
    """The codes that W `[in, out]` was made of, in blocks of 32 inputs of an output; None if it was not.

    A block's lowest number is code 0 moved by its zero point: Ŵᵀ = s∘(Q − z) + o, o at most half a step where 0 lies
    among the block's numbers.
    """
    inputs, outputs = w.shape
    if inputs % BLOCK or not w.size:
        return None
    blocks = w.T.reshape(-1, BLOCK)
    if (_steps(blocks[:_TRIED]) == 0).any():
        return None
    steps = _steps(blocks)
    if (steps == 0).any():
        return None
    low, high = blocks.min(1), blocks.max(1)
    flat = high == low
    scale = np.where(flat, 1, (high - low) / steps).astype(np.float32)
    zero = np.where(flat, 0, np.clip(np.rint(-low / scale), 0, _TOP)).astype(np.uint8)
    offset = (low + zero * scale).astype(np.float32)
    if (np.abs(offset) <= _EXACT * np.abs(blocks).max(1)).all():
        offset = None
    codes = np.rint((blocks - low[:, None]) / scale[:, None]).astype(np.uint8)
    scale, zero = scale.reshape(outputs, -1), zero.reshape(outputs, -1)
    offset = None if offset is None else offset.reshape(outputs, -1)
    return Blocks(codes.reshape(outputs, -1), scale, zero, _BITS, offset)


def _steps(blocks: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many steps there are from the lowest to the highest number of each block `[blocks, numbers]`; 0 if no
    number of at most 15 fits."""
    found = np.zeros(len(blocks), np.int64)
    for steps in range(_TOP, 0, -1):
        (left,) = np.nonzero(found == 0)
        if not len(left):
            break
        x = blocks[left]
        low, span = x.min(1, keepdims=True), np.ptp(x, axis=1, keepdims=True)
        step = np.where(span > 0, span / steps, 1)
        made = np.rint((x - low) / step) * step + low
        fits = (np.abs(made - x) <= _EXACT * np.abs(x).max(1, keepdims=True)).all(1)
        found[left[fits]] = steps
    return found
