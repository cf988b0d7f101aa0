"""Errors of gradients in float32, told from its jumps.

A gradient jumps where a ReLU bends within rounding, or a maximum changes its place, for two graphs round otherwise.
Where it does is an accident of a place, of adapters and cotangents; a wrong gradient is wrong everywhere, and one that
is not finite, or far off, is no jump. A twin that jumps by itself everywhere, as behind ReLUs that few units go
through, is no better known than that: the distance from itself, with its inputs and adapter moved by a rounding, is
allowed where that is least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgelora.parity import SPREADS
from edgelora.probes import Feeds

_PLACES, _MOST = 4, 12
_JUMP = 100.0  # times what is tolerated
_WHOLLY = 1e4  # times that: no jump of any twin
_ROUNDING, DRAWS = 1e-6, 3


@dataclass(frozen=True)
class Place:
    """Errors by name at a place, as shares of what is tolerated; `own`, where asked, are those of the twin moved."""

    shares: dict[str, float]
    own: Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Share:
    """An error, and what is allowed of it: 1, or more where the twin is as far from itself as `own` tells."""

    error: float
    allowed: float = 1.0
    own: float = 0.0

    @property
    def exceeds(self) -> float:
        """The error by what is allowed."""
        return self.error / self.allowed


def least_shares(draw: Callable[[], Place], farthest: float) -> dict[str, Share]:
    """Errors by name, the least of several places, while some exceed; `farthest` is what a twin may excuse at most.

    A twin that may excuse nothing, as one in whole numbers, which is tolerated more to begin with, is not asked.

    What is far off at a place decides, but where the twin jumps by itself: there other places tell, more than four.
    """
    least, own, jumps = dict[str, float](), dict[str, float](), False
    for number in range(_MOST):
        place = draw()
        exceeds = max(place.shares.values(), default=0.0) > 1
        here = place.own() if exceeds and farthest > 1 else {}
        edge = SPREADS * max(here.values(), default=0.0)  # one tensor's jump takes others' along
        jumps = jumps or edge > 1
        for name, share in place.shares.items():
            if share >= _WHOLLY or (share >= _JUMP and edge <= 1):
                return {name: Share(share)}
            least[name] = min(share, least.get(name, share))
        own |= {name: min(share, own.get(name, share)) for name, share in here.items()}
        if max(least.values(), default=0.0) <= 1 or (number >= _PLACES - 1 and not jumps):
            break
    return {name: _share(error, own.get(name, 0.0), farthest) for name, error in least.items()}


def _share(error: float, own: float, farthest: float) -> Share:
    allowed = max(1.0, min(farthest, SPREADS * own))
    return Share(error, allowed, own) if error > 1 and allowed > 1 else Share(error)


def moved(feeds: Feeds, rng: np.random.Generator) -> Feeds:
    """Real numbers moved by about what float32 leaves of them after some operators; whole ones, as of masks, stay."""
    found: Feeds = {}
    for name, x in feeds.items():
        if x.dtype == np.float32:
            noise = 1 + _ROUNDING * rng.standard_normal(x.shape)
            found[name] = np.where(x == np.rint(x), x, x * noise).astype(np.float32)
    return found
