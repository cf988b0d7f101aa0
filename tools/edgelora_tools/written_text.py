"""Text that a language model writes itself, to ask its quantized twin about: what a model says is what it is used for.

It is drawn from the source's own probabilities, so that the divergence of two models on it, summed over a text, is that
of all that they would say; and no one's text is in the bundle.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelora_tools.sources.base import Decoder, Source

TEXTS, TOKENS = 4, 24


def written_text(source: Source, decoder: Decoder, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Inputs `[texts, tokens]`: rows of two texts each, of several lengths, the second of which begins anew.

    A text begins with the model's first token, or with a random one if it has none.
    """
    length = min(TOKENS, decoder.max_length or TOKENS)
    first = rng.integers(0, decoder.vocabulary, (TEXTS, 1)) if decoder.bos is None else np.full((TEXTS, 1), decoder.bos)
    ids = first.astype(np.int64)
    while ids.shape[1] < length:
        z = np.asarray(source.run(_inputs(ids))["logits"][:, -1], np.float64)
        noise = rng.gumbel(size=z.shape)
        ids = np.concatenate([ids, (z + noise).argmax(-1)[:, None]], axis=1)
    cuts = [length - row * length // (TEXTS + 1) for row in range(TEXTS)]
    before = np.arange(length) < np.array(cuts)[:, None]
    return {
        "input_ids": np.stack(
            [np.r_[ids[r, :cut], ids[(r + 1) % TEXTS, : length - cut]] for r, cut in enumerate(cuts)]
        ),
        "attention_mask": np.where(before, 1, 2),
        "position_ids": np.arange(length) - np.where(before, 0, np.array(cuts)[:, None]),
    }


def _inputs(ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places.copy()}
