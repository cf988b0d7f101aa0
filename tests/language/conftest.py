"""One tiny decoder with grouped queries, random weights and a chat template, converted once for the session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgelora.adapter import Adapter, new_adapter
from edgelora.config import LoraConfig
from edgelora.runtime import Model
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.causal_lm import causal_lm_source
from tests.language import texts

POSITIONS = 160


@pytest.fixture(scope="session")
def causal() -> Any:
    """The decoder as transformers has it, with weights that make its text go on and on."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=64,
        vocab_size=texts.VOCABULARY,
        max_position_embeddings=POSITIONS,
        bos_token_id=texts.tokenizer().token_to_id(texts.BOS),
        eos_token_id=texts.tokenizer().token_to_id(texts.EOS),
        tie_word_embeddings=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)  # transformers' 0.02 would let it say one token for ever
    return model


@pytest.fixture(scope="session")
def language_bundle(causal: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, which adapters join at queries and values."""
    folder = tmp_path_factory.mktemp("decoder")
    causal.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=texts.tokenizer(), bos_token=texts.BOS, eos_token=texts.EOS, chat_template=texts.CHATML
    )
    fast.save_pretrained(folder)
    path = folder / "tiny.edgelora"
    convert(causal_lm_source(folder), path, ConvertOptions(task="text-generation", target_modules=("q_proj", "v_proj")))
    return path


@pytest.fixture
def model(language_bundle: Path, tmp_path: Path) -> Model:
    """The bundle with an empty store."""
    return Model.open(language_bundle, tmp_path / "store")


@pytest.fixture
def drawn(model: Model) -> Callable[..., Adapter]:
    """drawn(seed, rank): an adapter of random values that changes what is said."""

    def made(seed: int, rank: int = 4) -> Adapter:
        rng = np.random.default_rng(seed)
        fresh = new_adapter(model.bundle.manifest, LoraConfig(r=rank, lora_alpha=2 * rank))
        values = {n: (rng.standard_normal(t.shape) * 0.3).astype(np.float32) for n, t in fresh.tensors.items()}
        return fresh.with_tensors(values)

    return made
