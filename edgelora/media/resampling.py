"""Another sample rate for a sound: a windowed sinc, its taps for every phase computed once."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgelora.media.wav import Samples

ZEROS = 32  # of the sinc on either side
CUTOFF = 0.92  # of the lower Nyquist frequency; with the window, what lies above that frequency is 80 dB down
_BETA = 8.0  # of the Kaiser window
_AT_ONCE = 1 << 15  # samples


def resample(samples: Samples, rate: int, to: int) -> Samples:
    """The sound `[length]` of `rate` Hz at `to` Hz: `[⌈length·to/rate⌉]`, sample n at the time n/to.

    Frequencies up to 0.84 of the lower Nyquist frequency pass; before and behind the sound is silence.
    """
    if rate == to:
        return samples
    up, down = to // gcd(rate, to), rate // gcd(rate, to)
    taps = _taps(up, down)
    half = taps.shape[1] // 2
    length = -(-len(samples) * up // down)
    windows = sliding_window_view(np.pad(samples, (half - 1, half + 1)), taps.shape[1])
    made = np.empty(length, np.float32)
    for start in range(0, length, _AT_ONCE):
        places = np.arange(start, min(start + _AT_ONCE, length)) * down
        made[start : start + len(places)] = np.einsum("nt,nt->n", windows[places // up], taps[places % up])
    return made


@lru_cache(maxsize=4)
def _taps(up: int, down: int) -> NDArray[np.float32]:
    """`[up, taps]`: tap t of phase p weighs the sample at t − (taps/2 − 1) − p/up from the place; rows sum to 1."""
    width = CUTOFF * min(1.0, up / down)
    half = ceil(ZEROS / width)
    distance = np.arange(1 - half, half + 1) - np.arange(up)[:, None] / up
    window = np.i0(_BETA * np.sqrt(np.maximum(1 - (distance / half) ** 2, 0)))
    taps = np.sinc(width * distance) * window
    return (taps / taps.sum(1, keepdims=True)).astype(np.float32)
