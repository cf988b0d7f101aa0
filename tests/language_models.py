"""Language models for tests: tiny ones of random weights with a tokenizer of bytes, and stories260k from its zip.

`PYTHONPATH=.:tools python -m tests.language_models FOLDER` writes stories260k there as a Hugging Face directory.
"""

from __future__ import annotations

import os
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources import open_source

hf: Any = transformers

VOCABULARY, LONGEST = 264, 192
PAD, BOS, EOS = 0, 1, 2
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LONGEST,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
KINDS = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "thirds": lambda: hf.LlamaConfig(**SMALL | {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=LONGEST, bos_token_id=BOS, eos_token_id=EOS
    ),
    "phi": lambda: hf.PhiConfig(**SMALL),
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    "gemma": lambda: hf.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": lambda: hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=4),
    "gemma3": lambda: hf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=4, layer_types=KINDS),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=4),
}


def build(kind: str) -> Any:
    """A causal language model with fixed random weights, loud enough that everything counts; eager attention."""
    torch.manual_seed(0)
    causal = hf.AutoModelForCausalLM.from_config(CONFIGS[kind](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in causal.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3)
    return causal.eval()


def model_folder(kind: str, folder: Path) -> Path:
    """The model of this kind as a Hugging Face directory, with a tokenizer of bytes and a chat template."""
    build(kind).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def to_language_bundle(folder: Path, path: Path, **options: Any) -> Path:
    """A Hugging Face directory converted for text-generation."""
    source = open_source(str(folder), task="text-generation")
    convert(source, path, ConvertOptions(task="text-generation", **options))
    return path


def byte_tokenizer() -> Any:
    """A token for every byte, after padding and the two ends of a text; texts come back to the byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *letters]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    made = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    made.chat_template = TEMPLATE
    return made


def stories_archive() -> Path | None:
    """The zip of stories260k, if it is there."""
    path = Path(os.environ.get("EDGELORA_DATA", "../shared/data")) / "stories260k.zip"
    return path if path.is_file() else None


def stories_folder(archive: Path, folder: Path) -> Path:
    """stories260k as a Hugging Face directory: a Llama of 5 layers and 260 thousand weights, 512 tokens.

    The zip has it as llama2.c does: 7 numbers and the tensors in order; queries and keys turn neighbours where
    transformers turns halves. (https://github.com/karpathy/llama2.c, export.py and tokenizer.py.)
    """
    with zipfile.ZipFile(archive) as opened:
        weights, tokens = (opened.read(name) for name in ("stories260K.bin", "tok512.bin"))
    width, inner, layers, heads, kv_heads, vocabulary, longest = struct.unpack("7i", weights[:28])
    config = hf.LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=abs(vocabulary), max_position_embeddings=longest,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, tie_word_embeddings=vocabulary > 0,
    )  # fmt: skip
    causal = hf.LlamaForCausalLM(config)
    numbers, at = np.frombuffer(weights, np.float32, offset=28), 0
    size = width // heads

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return torch.from_numpy(numbers[at - count : at].reshape(shape).copy())

    def in_halves(matrix: torch.Tensor) -> torch.Tensor:
        return matrix.reshape(len(matrix), -1, size // 2, 2, width).transpose(2, 3).reshape(matrix.shape)

    state = {"model.embed_tokens.weight": take(abs(vocabulary), width)}
    parts = [
        ("input_layernorm", (width,)),
        ("self_attn.q_proj", (heads * size, width)),
        ("self_attn.k_proj", (kv_heads * size, width)),
        ("self_attn.v_proj", (kv_heads * size, width)),
        ("self_attn.o_proj", (width, width)),
        ("post_attention_layernorm", (width,)),
        ("mlp.gate_proj", (inner, width)),
        ("mlp.down_proj", (width, inner)),
        ("mlp.up_proj", (inner, width)),
    ]
    for part, shape in parts:
        stacked = take(layers, *shape)
        stacked = in_halves(stacked) if part in ("self_attn.q_proj", "self_attn.k_proj") else stacked
        state |= {f"model.layers.{i}.{part}.weight": stacked[i] for i in range(layers)}
    state["model.norm.weight"] = take(width)
    missing = causal.load_state_dict(state, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys
    causal.save_pretrained(folder)
    _stories_tokenizer(tokens, abs(vocabulary)).save_pretrained(folder)
    return folder


def _stories_tokenizer(content: bytes, count: int) -> Any:
    """Of pieces with scores: merged best first, bytes where there is no piece (SentencePiece's BPE)."""
    pieces: list[tuple[str, float]] = []
    at = 4
    for _ in range(count):
        score, length = struct.unpack_from("fi", content, at)
        pieces.append((content[at + 8 : at + 8 + length].decode().replace(" ", "▁"), score))
        at += 8 + length
    pieces[:3] = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    ranked = sorted((p for p in pieces[259:] if len(p[0]) > 1), key=lambda p: -p[1])
    merges = [
        (piece[:cut], piece[cut:])
        for piece, _ in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", BOS)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


if __name__ == "__main__":
    found = stories_archive()
    if found is None:
        sys.exit("stories260k.zip is not there: EDGELORA_DATA names its folder")
    stories_folder(found, Path(sys.argv[1]))
