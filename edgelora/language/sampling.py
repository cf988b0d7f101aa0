"""How the next token is chosen. Names and meanings of the settings are those of transformers' `GenerationConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import AdapterError, ConfigError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_LEAST, _MOST = 1e-30, 1e30  # of what logits are divided by: the quotient is to stay finite in float32


@dataclass(frozen=True)
class GenerationConfig:
    """How text is generated.

    Greedily, the likeliest token each time, unless `do_sample`: then tokens are drawn, from the `top_k` likeliest (0:
    from all), and of these from the fewest that together have the probability `top_p`. A `temperature` below 1 favours
    likely tokens. A `repetition_penalty` above 1 makes tokens less likely that the prompt or the answer already has.

    A row ends after `max_new_tokens`, at the model's end token, or before one of `stop_strings`. The same `seed` gives
    every row the same text whatever else is in the batch; without one every text is another.

    Raises:
        ConfigError: a value out of range; all are named.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_strings: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not _is_whole(self.max_new_tokens, 1):
            problems.append(f"max_new_tokens must be a whole number from 1, not {self.max_new_tokens!r}")
        if not _is_number(self.temperature, _LEAST, _MOST):
            problems.append(
                f"temperature must be a number above 0 ({_LEAST:g} to {_MOST:g}), not {self.temperature!r}; leave "
                "do_sample off for the likeliest"
            )
        if not _is_whole(self.top_k, 0):
            problems.append(f"top_k must be a whole number from 0 (all tokens), not {self.top_k!r}")
        if not _is_number(self.top_p, 0, 1) or not self.top_p:
            problems.append(f"top_p must be above 0 and at most 1, not {self.top_p!r}")
        if not _is_number(self.repetition_penalty, _LEAST, _MOST):
            problems.append(
                f"repetition_penalty must be a number above 0 ({_LEAST:g} to {_MOST:g}), not "
                f"{self.repetition_penalty!r}"
            )
        stops: Any = self.stop_strings
        is_list = isinstance(stops, Sequence) and not isinstance(stops, str)
        if not is_list or not all(isinstance(stop, str) and stop for stop in cast("Sequence[Any]", stops)):
            problems.append(f"stop_strings must be a list of texts that are not empty, not {stops!r}")
        if self.seed is not None and not _is_whole(self.seed, 0):
            problems.append(f"seed must be a whole number from 0, not {self.seed!r}")
        if problems:
            raise ConfigError("; ".join(problems))


class Sampler:
    """Chooses one row's tokens. Its random numbers are its own, so other rows do not change what it draws."""

    def __init__(self, config: GenerationConfig, prompt: Ints, vocabulary: int) -> None:
        """`prompt` are the tokens that the row begins with, `vocabulary` is the number of logits."""
        self._config = config
        self._random = np.random.default_rng(config.seed)
        self._seen = np.zeros(vocabulary, bool)
        self._seen[prompt[prompt < vocabulary]] = True

    def choose(self, logits: Floats) -> int:
        """The next token, from its logits `[vocabulary]`.

        Raises:
            AdapterError: they are not finite.
        """
        if not np.isfinite(np.max(logits)):
            raise AdapterError("the model's logits are not finite: the adapter's values, or its scale, are too large")
        scores = penalised(logits, self._seen, self._config.repetition_penalty)
        token = int(scores.argmax())
        if self._config.do_sample:
            tokens, probabilities = candidates(scores, self._config)
            summed = np.cumsum(probabilities)
            place = np.count_nonzero(summed <= self._random.random() * summed[-1])
            token = int(tokens[min(place, len(tokens) - 1)])
        self._seen[token] = True
        return token


def penalised(logits: Floats, seen: NDArray[np.bool_], penalty: float) -> Floats:
    """Logits with those of `seen` tokens divided by the penalty, or multiplied where negative (arXiv:1909.05858)."""
    if penalty == 1.0:
        return logits
    factor = np.float32(penalty)
    return np.where(seen, np.where(logits < 0, logits * factor, logits / factor), logits)


def candidates(scores: Floats, config: GenerationConfig) -> tuple[Ints, NDArray[np.float64]]:
    """The tokens that may be drawn, in ascending order, and their probabilities, which sum to 1.

    In transformers' order: temperature, top-k, top-p. Ties with the k-th likeliest token stay in.
    """
    scores = scores / np.float32(config.temperature)
    tokens = np.arange(len(scores))
    if 0 < config.top_k < len(scores):
        least = np.partition(scores, -config.top_k)[-config.top_k]
        tokens = np.flatnonzero(scores >= least)
    probabilities = _softmax(scores[tokens])
    if config.top_p < 1.0:
        order = np.argsort(probabilities, kind="stable")
        kept = probabilities[order].cumsum() > 1.0 - config.top_p
        kept[-1] = True
        chosen = np.sort(order[kept])
        tokens, probabilities = tokens[chosen], _softmax(scores[tokens[chosen]])
    return tokens, probabilities


def _softmax(scores: Floats) -> NDArray[np.float64]:
    grown = np.exp(scores.astype(np.float64) - scores.max())
    return grown / grown.sum()


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
