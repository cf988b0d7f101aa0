"""The sizes of graph inputs at which a memory table is asked what a run holds.

The tables were measured with a fixed number of an adapter's virtual tokens: where an adapter has others, samples count
as longer or shorter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from edgelora.bundle import Bundle
from edgelora.manifest import MEASURED_SIZE
from edgelora.methods.prompt import PromptTuningConfig
from edgelora.objectives import Feeds
from edgelora.trainer import Trainer

Sizes = dict[str, int]
"""The sizes of inputs' dynamic dimensions, by name."""


def sizes_of(bundle: Bundle, feeds: Mapping[str, NDArray[Any]]) -> Sizes:
    """The sizes of the inputs' named dimensions."""
    return {
        dimension: size
        for spec in bundle.manifest.inputs
        for dimension, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dimension, str)
    }


def sizes_at_most(trainer: Trainer, feeds: Feeds) -> Sizes:
    """Sizes at which the tables tell no less than a run with the adapter's virtual tokens holds.

    Those of a prompt lengthen the text. Of a prefix only attention sees them: a longer text outweighs them that has as
    many scores, and a token for every four of theirs, for it holds eight times what a key and a value do.
    """
    more = _further_tokens(trainer)

    def longer(length: int) -> int:
        return math.ceil(max(math.sqrt(length * (length + more)), length + more / 4)) if more > 0 else length

    return _lengthened(trainer, feeds, (lambda length: length + more) if _is_prompt(trainer) else longer)


def sizes_at_least(trainer: Trainer, feeds: Feeds) -> Sizes:
    """Sizes at which the tables tell no more than that."""
    more = _further_tokens(trainer)
    return _lengthened(trainer, feeds, lambda length: length + (more if _is_prompt(trainer) else min(more, 0)))


def _further_tokens(trainer: Trainer) -> int:
    """The adapter's virtual tokens beyond those that the tables were measured with."""
    count = trainer.adapter.config.virtual_tokens
    return count - MEASURED_SIZE if count else 0


def _is_prompt(trainer: Trainer) -> bool:
    return isinstance(trainer.adapter.config, PromptTuningConfig)


def _lengthened(trainer: Trainer, feeds: Feeds, longer: Callable[[int], int]) -> Sizes:
    """The sizes with every sample as much longer."""
    batch = trainer.bundle.manifest.inputs[0].shape[0]
    sizes = sizes_of(trainer.bundle, feeds)
    return {name: size if name == batch else max(longer(size), 1) for name, size in sizes.items()}
