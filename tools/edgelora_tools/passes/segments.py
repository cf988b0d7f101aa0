"""Where to cut a forward pass into segments, so that what is kept between them and the largest of them are least."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

_LEVELS, _STEP, _MOST_PLACES = 48, 1.1, 96
_WORTHWHILE, _ALIKE = 0.8, 1.05


@dataclass(frozen=True)
class Cuts:
    """`at`: the nodes after which to cut; `held` bytes at the worst moment, what is kept and the largest segment."""

    at: tuple[int, ...]
    held: int


def choose_cuts(crossing: Sequence[int], saved: Sequence[int]) -> Cuts:
    """The cuts with which least is held; none if that is not clearly less than without.

    `crossing[i]` are the bytes that a cut after node i keeps, `saved[i]` the bytes that the nodes up to i save for
    the backward pass. Of cuts that are nearly as good, the fewest: the last segment is not computed again.
    """
    if not saved or not saved[-1]:
        return Cuts((), 0)
    places = narrow_places(crossing)
    ends = [saved[place] for place in (*places, len(saved) - 1)]
    spans = sorted({end - begin for begin in (0, *ends) for end in ends if begin <= end})
    found = [cuts for level in _spread(spans) if (cuts := _within(level, places, crossing, saved)) is not None]
    least = min((cuts.held for cuts in found), default=saved[-1])
    if least > _WORTHWHILE * saved[-1]:
        return Cuts((), saved[-1])
    return min((cuts for cuts in found if cuts.held <= _ALIKE * least), key=lambda cuts: len(cuts.at))


def _spread(spans: Sequence[int]) -> list[int]:
    """Some of the sorted spans, each not much less than the next larger; all if they are few."""
    if len(spans) <= _LEVELS:
        return list(spans)
    return sorted({spans[bisect_left(spans, spans[-1] / _STEP**step)] for step in range(_LEVELS)})


def narrow_places(crossing: Sequence[int]) -> list[int]:
    """The nodes after which least crosses, compared with those around: the first of each local minimum."""
    places: list[int] = []
    falling = False
    for at in range(1, len(crossing)):
        if crossing[at] < crossing[at - 1]:
            falling, first = True, at
        elif crossing[at] > crossing[at - 1]:
            if falling and crossing[first] > 0:
                places.append(first)
            falling = False
    if len(places) > _MOST_PLACES:
        limit = sorted(crossing[place] for place in places)[_MOST_PLACES - 1]
        narrower = [place for place in places if crossing[place] < limit]
        alike = [place for place in places if crossing[place] == limit]
        left = _MOST_PLACES - len(narrower)
        places = sorted([*narrower, *(alike[i * len(alike) // left] for i in range(left))])
    return places


def _within(level: int, places: Sequence[int], crossing: Sequence[int], saved: Sequence[int]) -> Cuts | None:
    """The cuts that keep least, of those whose segments save at most `level` each; None if there are none."""
    ends = [*places, len(saved) - 1]
    begins = [0, *(saved[place] for place in places)]
    prices = [*(crossing[place] for place in places), 0]
    best: list[tuple[int, tuple[int, ...]] | None] = [(0, ())]  # bytes kept and cuts, up to each place
    for end, price in zip(ends, prices, strict=True):
        fitting = [
            (kept[0] + price, (*kept[1], end))
            for begin, kept in zip(begins, best, strict=False)
            if kept is not None and saved[end] - begin <= level
        ]
        best.append(min(fitting, default=None))
    if best[-1] is None:
        return None
    kept, cuts = best[-1]
    return Cuts(cuts[:-1], kept + level)
