"""Tiny models as GGUF files, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.language_models import BOS, EOS, TEMPLATE, byte_tokenizer


def gguf_file(
    causal: Any, path: Path, codes: str | None = None, add: Callable[[Any], None] = lambda _writer: None
) -> Path:
    """The model as llama.cpp has it: its names, its order of the turned features, a tokenizer of bytes inside.

    The layers' matrices are in `codes` (Q4_0, Q4_1, Q8_0), if any. `add` writes what else the file is to have.
    """
    gguf = pytest.importorskip("gguf")
    config, own = causal.config, byte_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*own.convert_ids_to_tokens(list(range(len(own)))), "ab"])
    writer.add_token_types([3] * 3 + [1] * (len(own) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_chat_template(TEMPLATE)
    add(writer)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in causal.state_dict().items():
        if name != "lm_head.weight":
            array = tensor.numpy()
            if ".q_proj." in name or ".k_proj." in name:
                size = config.hidden_size // config.num_attention_heads
                halves = array.reshape(-1, 2, size // 2, array.shape[1])
                array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
            stem, _, kind = name.rpartition(".")
            type_of_codes = None
            if codes is not None and array.ndim == 2 and ".layers." in name:
                type_of_codes = gguf.GGMLQuantizationType[codes]
                array = gguf.quants.quantize(array, type_of_codes)
            writer.add_tensor(f"{table.get_name(stem)}.{kind}", array, raw_dtype=type_of_codes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
