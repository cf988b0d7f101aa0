"""A detector's maps `[N, anchors·(5 + classes), h, w]` as candidates, one an anchor of each cell, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelora.vision.boxes import Reals

Array = NDArray[np.generic]
Anchors = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Cells:
    """Where K candidates stand: `place` `[K, 2]` (column, row), `stride` `[K, 2]` pixels of the input a cell.

    `anchor` `[K, 2]` is the width and height in pixels that a box is told in, the cell's own where a detector has no
    anchors; `level` `[K]` numbers the map, `grids` are the maps' heights and widths, with `anchors` candidates a cell;
    `size` is the input's width and height.
    """

    place: Reals
    stride: Reals
    anchor: Reals
    level: NDArray[np.int64]
    grids: tuple[tuple[int, int], ...]
    anchors: int
    size: Reals

    def __len__(self) -> int:
        return len(self.place)

    def first(self, level: int) -> int:
        """The number of the first candidate of a map."""
        return self.anchors * sum(height * width for height, width in self.grids[:level])


@dataclass(frozen=True)
class Predictions:
    """What a picture's K candidates say: `raw` `[K, 4]`, `objectness` `[K]`, `classes` `[K, C]`; or gradients of it."""

    raw: Reals
    objectness: Reals
    classes: Reals


@dataclass(frozen=True)
class Positives:
    """The candidates that answer for the objects of a picture, and what each should say.

    `candidate` `[P]`; `box` `[P, 4]` in pixels of the input; `label` `[P]`; `overlap` `[P]`, how far the candidate's
    box met the object's when it was chosen. All of it is constant to the loss.
    """

    candidate: NDArray[np.int64]
    box: Reals
    label: NDArray[np.int64]
    overlap: Reals


NOTHING = Positives(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


def cells_of(maps: Sequence[Array], size: tuple[int, int], anchors: Sequence[Anchors] = ()) -> Cells:
    """The candidates of maps of an input of `size` (height, width): map by map, row by row, anchor by anchor."""
    count = len(anchors[0]) if anchors else 1
    grids = tuple((int(one.shape[2]), int(one.shape[3])) for one in maps)
    places: list[Reals] = []
    strides: list[Reals] = []
    sizes: list[Reals] = []
    for level, (height, width) in enumerate(grids):
        stride = np.array([[size[1] / width, size[0] / height]])
        own = np.array(anchors[level], np.float64) if anchors else stride
        rows, columns = np.divmod(np.arange(height * width, dtype=np.float64), width)
        grid: Reals = np.stack([columns, rows], axis=1)
        places.append(np.repeat(grid, count, axis=0))
        strides.append(np.repeat(stride, len(places[-1]), axis=0))
        sizes.append(np.tile(own, (len(grid), 1)))
    return Cells(
        place=np.concatenate(places),
        stride=np.concatenate(strides),
        anchor=np.concatenate(sizes),
        level=np.repeat(np.arange(len(grids)), [len(x) for x in places]),
        grids=grids,
        anchors=count,
        size=np.array([size[1], size[0]], np.float64),
    )


def rows_of(maps: Sequence[Array], anchors: int) -> Reals:
    """The maps as `[N, K, 5 + classes]`, in the order of `cells_of`."""
    return np.concatenate([_rows(one.astype(np.float64), anchors) for one in maps], axis=1)


def maps_of(rows: Reals, like: Sequence[Array], anchors: int) -> list[Reals]:
    """`[N, K, 5 + classes]` in the shapes of the maps that `rows_of` was given."""
    counts = [one.shape[2] * one.shape[3] * anchors for one in like]
    made: list[Reals] = []
    for part, one in zip(np.split(rows, np.cumsum(counts)[:-1], axis=1), like, strict=True):
        n, channels, height, width = one.shape
        spread = part.reshape(n, height, width, anchors, channels // anchors)
        made.append(spread.transpose(0, 3, 4, 1, 2).reshape(one.shape))
    return made


def _rows(one: Reals, anchors: int) -> Reals:
    n, channels, height, width = one.shape
    spread = one.reshape(n, anchors, channels // anchors, height, width)
    return spread.transpose(0, 3, 4, 1, 2).reshape(n, height * width * anchors, channels // anchors)
