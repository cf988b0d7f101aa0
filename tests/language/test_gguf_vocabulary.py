"""A GGUF file's vocabulary is the file's: special tokens of transformers' own classes that it has not are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edgelora.errors import ConversionError
from edgelora_tools.sources.causal_lm import load_causal_lm
from tests.language.gguf_files import gguf_file
from tests.language_models import BOS, EOS, build, byte_tokenizer

TEXT = "To be, or not to be: ünd ✓"


def test_a_vocabulary_without_the_token_of_gpt2_converts(tmp_path: Path) -> None:
    """As Llama 3's, which has as many tokens as the model, and none named <|endoftext|>."""
    causal, own = build("llama"), byte_tokenizer()
    causal.resize_token_embeddings(len(own) + 1)  # and "ab", which the file has too
    _, _, files, facts, ends = load_causal_lm(gguf_file(causal, tmp_path / "full.gguf"))
    body = json.loads(files["tokenizer.json"])
    assert [token["content"] for token in body["added_tokens"]] == ["<pad>", "<s>", "</s>"]
    assert EOS in ends and 0 <= facts["pad_id"] <= len(own)
    read = Tokenizer.from_str(files["tokenizer.json"].decode())
    ids = read.encode(TEXT, add_special_tokens=False).ids
    assert ids == own(TEXT, add_special_tokens=False)["input_ids"]
    assert read.decode(ids) == TEXT
    assert read.encode("<s>", add_special_tokens=False).ids == [BOS]


def test_a_model_with_fewer_tokens_than_its_file_is_still_refused(tmp_path: Path) -> None:
    causal = build("llama")
    causal.resize_token_embeddings(len(byte_tokenizer()))
    with pytest.raises(ConversionError, match="they do not belong together"):
        load_causal_lm(gguf_file(causal, tmp_path / "short.gguf"))
