"""Rows of tokens, and short samples put together into rows of one width without seeing each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """What a graph reads in one row, `[tokens]` each, and what is learned from it.

    `labels` are the tokens that come next, `counted` tells which of them are learned. `segments` number the samples of
    the row from 1: a token sees those of its own segment alone, and `positions` begin at 0 in each. `bytes` are those
    of the text that the counted labels stand for.
    """

    inputs: Ints
    labels: Ints
    counted: Bools
    segments: Ints
    positions: Ints
    bytes: int

    def __len__(self) -> int:
        return len(self.inputs)


def row_of(inputs: Ints, labels: Ints, counted: Bools, text_bytes: int) -> Row:
    """A row of one sample."""
    size = len(inputs)
    return Row(inputs, labels, counted, np.ones(size, np.int64), np.arange(size, dtype=np.int64), text_bytes)


class RowInputs:
    """The model inputs of rows, padded on the right to the longest of a batch."""

    def __init__(self, rows: Sequence[Row], padding: int = 0) -> None:
        """`padding` is the token that stands where there is none; nothing sees it."""
        self.rows, self.padding = list(rows), padding

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> Ints:
        return np.asarray([len(row) for row in self.rows], np.int64)

    def feeds(self, rows: Ints) -> dict[str, NDArray[Any]]:
        """`input_ids`, `attention_mask` with the segments' numbers, `position_ids`, all `[rows, longest]`."""
        chosen = self.chosen(rows)
        return {
            "input_ids": side_by_side([row.inputs for row in chosen], self.padding),
            "attention_mask": side_by_side([row.segments for row in chosen]),
            "position_ids": side_by_side([row.positions for row in chosen]),
        }

    def labels(self, rows: Ints) -> Ints:
        """The token after each, `[rows, longest]`; −1 where none is learned, whose loss no graph computes."""
        return side_by_side([np.where(row.counted, row.labels, -1) for row in self.chosen(rows)], -1)

    def counted(self, rows: Ints) -> NDArray[np.float32]:
        """1 where that is learned, else 0."""
        return side_by_side([row.counted for row in self.chosen(rows)]).astype(np.float32)

    def chosen(self, rows: Ints) -> list[Row]:
        """The rows of these numbers."""
        return [self.rows[number] for number in rows.tolist()]


def side_by_side(rows: Sequence[NDArray[Any]], padding: int = 0) -> Ints:
    """Rows of numbers as one array, as wide as the longest."""
    made = np.full((len(rows), max((len(row) for row in rows), default=0)), padding, np.int64)
    for number, row in enumerate(rows):
        made[number, : len(row)] = row
    return made


def packed(rows: Sequence[Row], width: int) -> list[Row]:
    """The samples in rows of at most `width` tokens, none of them cut; all must be that short."""
    lengths = np.asarray([len(row) for row in rows], np.int64)
    return [_joined([rows[i] for i in members]) for members in first_fit_decreasing(lengths, width)]


def _joined(rows: Sequence[Row]) -> Row:
    """Several rows as one."""
    segments: list[Ints] = []
    used = 0
    for row in rows:
        segments.append(row.segments + used)
        used += int(row.segments.max(initial=0))
    return Row(
        np.concatenate([row.inputs for row in rows]),
        np.concatenate([row.labels for row in rows]),
        np.concatenate([row.counted for row in rows]),
        np.concatenate(segments),
        np.concatenate([row.positions for row in rows]),
        sum(row.bytes for row in rows),
    )


def first_fit_decreasing(lengths: Ints, width: int) -> list[list[int]]:
    """Which samples go into each row: the longest first, each into the first row with room for it.

    At most 11/9 of the fewest rows possible, and one more (Johnson 1973).
    """
    rows: list[list[int]] = []
    room: list[int] = []
    row, before = 0, -1
    for sample in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[sample])
        if size != before:
            row, before = 0, size
        while (
            row < len(rows) and room[row] < size
        ):  # no shorter room becomes longer: the next of this size goes on here
            row += 1
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(sample)
        room[row] -= size
    return rows
