"""A GGUF file that says more than transformers reads is refused by name, or converted for as far as it is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelora.errors import ConversionError
from edgelora_tools.sources.causal_lm import load_causal_lm
from tests.language.gguf_files import gguf_file

UNREAD: dict[str, tuple[Callable[[Any], None], str]] = {
    "turns of Llama 3.1": (
        lambda w: w.add_tensor("rope_freqs.weight", np.full(4, 8, np.float32)),
        r"does not read rope_freqs\.weight from a GGUF file",
    ),
    "turns that are scaled": (
        lambda w: w.add_string("llama.rope.scaling.type", "yarn"),
        r"does not read rope\.scaling\.type = yarn from",
    ),
    "capped logits": (
        lambda w: w.add_final_logit_softcapping(30.0),
        r"does not read final_logit_softcapping = 30\.0 \(it takes None\)",
    ),
}


@pytest.mark.parametrize("said", UNREAD)
def test_what_transformers_passes_over_is_named(said: str, causal: Any, tmp_path: Path) -> None:
    add, message = UNREAD[said]
    with pytest.raises(ConversionError, match=message):
        load_causal_lm(gguf_file(causal, tmp_path / "x.gguf", add=add))


def test_turns_that_are_not_scaled_are_read(causal: Any, tmp_path: Path) -> None:
    def add(writer: Any) -> None:
        writer.add_string("llama.rope.scaling.type", "none")
        writer.add_float32("llama.rope.scaling.factor", 1.0)

    read = load_causal_lm(gguf_file(causal, tmp_path / "x.gguf", add=add))[0]
    assert read.config.max_position_embeddings == causal.config.max_position_embeddings


def test_a_window_that_is_not_read_bounds_the_length(causal: Any, tmp_path: Path) -> None:
    """No token of a row that fits into the window sees less with it."""
    path = gguf_file(causal, tmp_path / "x.gguf", add=lambda w: w.add_sliding_window(24))
    assert load_causal_lm(path)[0].config.max_position_embeddings == 24
