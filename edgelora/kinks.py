"""Errors of gradients in float32, told from its jumps.

A gradient jumps where a ReLU bends within rounding, or a maximum changes its place, for two graphs round otherwise.
Where it does is an accident of a place, of adapters and cotangents; a wrong gradient is wrong everywhere, and one that
is not finite, or far off, is no jump.
"""

from __future__ import annotations

from collections.abc import Callable

_PLACES = 4
_JUMP = 100.0  # times what is tolerated


def least_shares(shares: dict[str, float], elsewhere: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Errors by name, as shares of what is tolerated: the least of several places, while some exceed it by little."""
    for _ in range(_PLACES - 1):
        worst = max(shares.values(), default=0.0)
        if worst <= 1 or worst >= _JUMP:
            break
        again = elsewhere()
        shares = {name: again[name] if again[name] >= _JUMP else min(e, again[name]) for name, e in shares.items()}
    return shares
