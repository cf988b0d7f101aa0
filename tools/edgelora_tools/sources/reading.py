"""Does a language model read text by its tokenizer? Another model's makes ids of a text that mean other words to it.

The measure is the gain of order: how much likelier a text's tokens are in their order than shuffled, in nats a token.
A text by another model's tokenizer is as unlikely in either order; frequent ids do not count, since both have the same.
Only tokens that have not occurred before count: a repetition is foretold by whoever can copy. What is much is told by
the model itself, by the gain of what it writes. A model that writes without order is untrained, and proves nothing.
(docs/decisions/0052)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConversionError
from edgelora_tools.normalize import onnx_errors
from edgelora_tools.sources.sentences import SENTENCES

AT_ONCE = 2.0  # nats: a first text that gains so much is read, and nothing else is asked
TRAINED = 2.0  # nats that what a trained model writes gains at least; random weights of the tests are below 0.3
READS = 0.2  # of its own gain: a text that is read gains as much at least
STRANGE = 0.1  # of the tokens that a trained model writes: more without a name prove another tokenizer
WORDS = 1.5  # letters a token of a text whose language the tokenizer was made for, at least
_TOKENS, _FEW, _SHUFFLED = 64, 12, 4
_ROWS, _LENGTH = 4, 25  # of what the model writes


@dataclass(frozen=True)
class Text:
    """A text by the tokenizer: the gain of its order, and its letters a token."""

    gain: float
    letters: float


def check_reads(causal: Any, tokenizer: bytes, where: Path) -> None:
    """Hold a tokenizer.json, named by `where`, against the model of transformers that is to read by it.

    Raises:
        ConversionError: the model is trained, and writes tokens that the tokenizer has not, or reads no plain sentences
            by it although they are of the tokenizer's language.
    """
    from tokenizers import Tokenizer

    with onnx_errors(f"{where}: not a tokenizer.json of the tokenizers library"):
        own = Tokenizer.from_str(tokenizer.decode())
    own.no_truncation()
    own.no_padding()
    kind = causal.config.model_type
    with onnx_errors(f"{where}: a {kind} does not run on token ids alone"):
        wrong = _wrong(causal, own, np.random.default_rng(0))
    if wrong is not None:
        raise ConversionError(
            f"{where}: not the tokenizer of this {kind}: {wrong}; give the model's own tokenizer.json (--tokenizer "
            "FILE), or say --no-tokenizer-check if the model is made for another language, or for none"
        )


def _wrong(causal: Any, tokenizer: Any, rng: np.random.Generator) -> str | None:
    """What proves the tokenizer another model's, if anything does."""
    first, *others = SENTENCES.values()
    text = measured(causal, tokenizer, first, rng)
    if text is not None and text.gain >= AT_ONCE:
        return None
    ids = written(causal, rng)
    own = float(np.mean([order_gain(causal, row, rng) for row in ids.tolist()]))
    if not own >= TRAINED:
        return None
    strange = float(np.mean([tokenizer.id_to_token(token) is None for token in ids[:, 1:].ravel().tolist()]))
    if strange > STRANGE:
        return f"{strange:.0%} of the tokens that the model writes are not in it"
    read = [x for x in (text, *(measured(causal, tokenizer, other, rng) for other in others)) if x is not None]
    best = max((x.gain for x in read), default=0.0)
    if best >= READS * own or all(x.letters < WORDS for x in read):
        return None
    return (
        f"by it the model reads none of {len(read)} plain texts, whose order gains {best:.1f} nats a token at most (of "
        f"what it writes itself, {own:.1f})"
    )


def measured(causal: Any, tokenizer: Any, text: str, rng: np.random.Generator) -> Text | None:
    """How the model reads a text; None if it says nothing: hardly a token is its own, or each is part of a letter."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not ids or len(ids) > len(text) or max(ids) >= causal.config.vocab_size:
        return None
    letters = len(text) / len(ids)
    body = ids[: _longest(causal) - 1]
    if len(set(body)) < _FEW:
        return None
    return Text(order_gain(causal, [*_beginning(causal), *body], rng), letters)


def order_gain(causal: Any, row: Sequence[int], rng: np.random.Generator) -> float:
    """Nats a token by which a row is likelier than shuffled behind its first token; NaN of one that only repeats."""
    rows = [list(row), *([row[0], *rng.permutation(row[1:]).tolist()] for _ in range(_SHUFFLED))]
    losses = _losses(causal, rows)
    new = np.array([[token not in one[:i] for i, token in enumerate(one)][1:] for one in rows])
    if not new.any(1).all():
        return float("nan")
    means = [float(one[which].mean()) for one, which in zip(losses, new, strict=True)]
    return float(np.mean(means[1:])) - means[0]


def written(causal: Any, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows that the model draws from its own probabilities, behind its first token, or a random one if it has none."""
    import torch

    begin = _beginning(causal)
    ids = np.array([begin or [int(token)] for token in rng.integers(0, causal.config.vocab_size, _ROWS)], np.int64)
    while ids.shape[1] < min(_LENGTH, _longest(causal)):
        with torch.no_grad():
            z = causal(input_ids=torch.from_numpy(ids), use_cache=False).logits[:, -1].double().numpy()
        ids = np.concatenate([ids, (z + rng.gumbel(size=z.shape)).argmax(-1)[:, None]], axis=1)
    return ids


def _beginning(causal: Any) -> list[int]:
    token = causal.config.bos_token_id
    return [token] if isinstance(token, int) and 0 <= token < causal.config.vocab_size else []


def _longest(causal: Any) -> int:
    return min(_TOKENS, int(getattr(causal.config, "max_position_embeddings", 0) or _TOKENS))


def _losses(causal: Any, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Minus the log-likelihood of every token but the first, `[rows, tokens - 1]`."""
    import torch

    losses = []
    for row in torch.tensor(rows):  # one by one: the logits of a large vocabulary are most of the memory
        with torch.no_grad():
            z = causal(input_ids=row[None], use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(z, row[1:], reduction="none").double().numpy())
    return np.stack(losses)
