"""How many samples one run of a convolutional training graph is given: few, whose results stay near the cores.

Products of matrices are quicker the more rows they have; convolutions are not, and their images are large. Gradients
of pieces add up to that of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, inf

from edgelora.manifest import Manifest

_NEAR = 64 << 20  # bytes that results of a run may hold (docs/decisions/0032-convolutions.md)


def most_samples(manifest: Manifest, file: str, sizes: Mapping[str, int]) -> float:
    """The most samples of a run of the graph `file`, where all else has these sizes; no bound without convolutions.

    A bundle that does not tell the memory of its graphs sets none either.
    """
    table, batch = manifest.memory.get(file), manifest.inputs[0].shape[0]
    if table is None or not isinstance(batch, str) or not any(point.kernel for point in manifest.points):
        return inf
    one, two = (table.peak({**sizes, batch: count}) for count in (1, 2))
    return max(1, (_NEAR - one) // max(two - one, 1) + 1)


def piece_count(samples: int, most: float, workers: int) -> int:
    """How many pieces a batch is cut into, as many for one worker as for another; of `most` samples each."""
    return workers * max(1, ceil(samples / (most * workers)))
