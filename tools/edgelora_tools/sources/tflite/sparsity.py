"""Sparse weights made dense: the axes, and the blocks within them, in the order in which a file traverses them.

The format is that of TACO (Kjolstad et al. 2017): an axis is dense, with a size, or compressed, with the segments of
its parents' entries and an index for each of its own.
"""

from __future__ import annotations

import math

import numpy as np

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Tensor


def dense(tensor: Tensor) -> np.ndarray:
    """The values of a sparse constant, `[*shape]`, zero where none is stored.

    Raises:
        ConversionError: the places that the file tells do not fit the shape or the number of values.
    """
    sparsity, values = tensor.sparsity, tensor.data
    rank = len(tensor.shape)
    assert sparsity is not None and values is not None
    blocks = sparsity.blocks
    axes = [*range(rank), *blocks]
    sizes = [0] * len(axes)
    try:
        if sorted(sparsity.order) != list(range(len(axes))) or len(sparsity.axes) != len(axes) or rank == 0:
            raise ValueError("the order of its axes")
        if any(not 0 <= axis < rank for axis in blocks):
            raise ValueError("the axis of a block")
        for position, axis in enumerate(sparsity.order):
            if axis >= rank:
                told = sparsity.axes[position]
                if not isinstance(told, int) or told < 1:
                    raise ValueError("a block")
                sizes[axis] = told
        for axis, size in enumerate(tensor.shape):
            block = math.prod(sizes[rank + i] for i, a in enumerate(blocks) if a == axis)
            if size % block:
                raise ValueError("a block")
            sizes[axis] = size // block
        places = _places(sparsity.axes, sparsity.order, sizes, values.size)
        made = np.zeros(sizes, values.dtype)
        made[places] = values
    except (ValueError, IndexError, TypeError) as error:
        raise ConversionError(f"tensor {tensor.name!r}: its sparse values do not fit its shape ({error})") from error
    order = [i for axis in range(rank) for i in (axis, *(rank + n for n, a in enumerate(blocks) if a == axis))]
    return made.transpose(order).reshape(tensor.shape)


def _places(axes, order: tuple[int, ...], sizes: list[int], count: int) -> tuple[np.ndarray, ...]:
    """For each axis, the index of every stored value."""
    places: list[np.ndarray] = []
    parents = 1
    for told, axis in zip(axes, order, strict=True):
        if isinstance(told, int):
            if told != sizes[axis] or not 1 <= parents * told <= count:
                raise ValueError("a dense axis")
            index, times = np.tile(np.arange(told), parents), np.full(parents, told)
        else:
            _, segments, index = told
            times = np.diff(segments)
            if (
                segments.size != parents + 1
                or (times < 0).any()
                or int(times.sum()) != index.size
                or index.size > count
            ):
                raise ValueError("a compressed axis")
            if index.size and not 0 <= int(index.min()) <= int(index.max()) < sizes[axis]:
                raise ValueError("an index")
        places = [np.repeat(p, times) for p in places] + [index]
        parents = index.size
    if parents != count:
        raise ValueError("the number of values")
    by_axis = dict(zip(order, places, strict=True))
    return tuple(by_axis[axis] for axis in range(len(sizes)))
