"""The figures of a language model on this device."""

from __future__ import annotations

import pytest

from edgelora.bench import bench
from edgelora.cli.measure import bench_text
from edgelora.errors import ConfigError
from edgelora.session import SessionSettings
from tests.language_models import LONGEST

KINDS = [f"{kind}_tokens_per_second_{side}" for kind in ("read", "write") for side in ("off", "on")]


def test_reading_and_writing_have_figures_with_an_adapter_and_without(language_bundle):
    figures = bench(language_bundle, SessionSettings(threads=1), batch_size=2, length=6, rank=2, steps=3)
    names = [*KINDS, *(f"{kind}_1" for kind in KINDS if kind.startswith("write"))]
    assert all(figures[name] > 0 for name in names)
    assert figures["step_ms"] and figures["tokens_per_second"] > 0
    text = bench_text(figures | {"cold_start_ms": None, "peak_memory_mb": None})
    for line in (
        "reading the batch, no adapter",
        "writing to the batch, with an adapter",
        "writing to one row, no adapter",
    ):
        assert f"tokens a second, {line}" in text


def test_more_tokens_than_the_model_takes_are_refused(language_bundle):
    with pytest.raises(ConfigError, match=rf"takes {LONGEST} tokens"):
        bench(language_bundle, SessionSettings(threads=1), batch_size=1, length=LONGEST, rank=2, steps=3)
