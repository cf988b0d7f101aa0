"""Sampling against transformers' logits processors, and what settings are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from edgelora.errors import AdapterError, ConfigError
from edgelora.language.sampling import GenerationConfig, Sampler, candidates, penalised

CONFIGS = st.builds(
    GenerationConfig,
    do_sample=st.just(True),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 20, 1000]),
    top_p=st.sampled_from([1e-4, 0.31, 0.73, 0.96, 1.0]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.8]),
)


def transformers_scores(config: GenerationConfig, prompt: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Transformers' scores, −inf where a token cannot be drawn; in the order of its `generate`."""
    made: Any = theirs.LogitsProcessorList()
    if config.repetition_penalty != 1.0:
        made.append(theirs.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    made.append(theirs.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        made.append(theirs.TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        made.append(theirs.TopPLogitsWarper(config.top_p))
    scores = made(torch.tensor(prompt[None]), torch.tensor(logits[None]).double())
    return scores[0].numpy()


@given(CONFIGS, st.integers(0, 10_000), st.integers(2, 70), st.floats(0.1, 8))
def test_transformers_draws_from_the_same_tokens_with_the_same_probabilities(config, seed, vocabulary, spread):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(vocabulary) * spread).astype(np.float32)
    prompt = rng.integers(0, vocabulary, 5)
    seen = np.zeros(vocabulary, bool)
    seen[prompt] = True
    tokens, probabilities = candidates(penalised(logits, seen, config.repetition_penalty), config)
    scores = transformers_scores(config, prompt, logits)
    wanted = torch.softmax(torch.tensor(scores), 0).numpy()
    got = np.zeros(vocabulary)
    got[tokens] = probabilities
    assert (np.diff(tokens) > 0).all()
    np.testing.assert_allclose(got, wanted, atol=2e-6)
    assert set(tokens.tolist()) == set(np.flatnonzero(np.isfinite(scores)).tolist())


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(GenerationConfig(do_sample=True, seed=3), np.array([0]), 4)
    drawn = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], atol=0.012)


def test_a_seed_repeats_and_no_seed_does_not():
    config = GenerationConfig(do_sample=True, seed=7)
    logits = np.zeros(1000, np.float32)

    def drawn(config: GenerationConfig) -> list[int]:
        sampler = Sampler(replace(config, top_k=0), np.array([0]), 1000)
        return [sampler.choose(logits) for _ in range(20)]

    assert drawn(config) == drawn(config) != drawn(replace(config, seed=8))
    assert drawn(replace(config, seed=None)) != drawn(replace(config, seed=None))


def test_greedy_takes_the_likeliest_that_the_penalty_leaves():
    logits = np.array([0.0, 2.0, 1.9, -1.0], np.float32)
    config = GenerationConfig(repetition_penalty=1.2)
    sampler = Sampler(config, np.array([3]), 4)
    assert [sampler.choose(logits) for _ in range(3)] == [1, 2, 1]
    assert Sampler(GenerationConfig(), np.array([1]), 4).choose(logits) == 1


@pytest.mark.parametrize("setting", ["temperature", "repetition_penalty"])
@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_the_least_and_largest_settings_draw_a_token_that_can_be(setting, value):
    logits = np.array([0, 1e4, -1e4, 9e3], np.float32)
    config = GenerationConfig(do_sample=True, top_k=0, seed=0, **{setting: value})
    with np.errstate(all="raise", under="ignore"):
        tokens, probabilities = candidates(penalised(logits, np.array([1, 0, 1, 0], bool), value), config)
    assert len(tokens) == 4 and probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    sampler = Sampler(GenerationConfig(), np.array([0]), 3)
    with pytest.raises(AdapterError, match="not finite"):
        sampler.choose(np.array([0, bad, 1], np.float32))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-50}, "repetition_penalty"),
        ({"stop_strings": None}, "stop_strings"),
        ({"stop_strings": iter(["word"])}, "stop_strings"),
        ({"stop_strings": "word"}, "stop_strings"),
        ({"stop_strings": ("",)}, "stop_strings"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        GenerationConfig(**settings)


def test_all_bad_settings_are_named_at_once():
    with pytest.raises(ConfigError, match=r"temperature.*top_p.*seed"):
        GenerationConfig(temperature=-1, top_p=2, seed=-3)
