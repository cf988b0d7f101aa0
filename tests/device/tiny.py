"""A tiny base model with its tokenizer, data that it can learn, and the real command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from edgelora.memory_plan import MemoryPlan
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import module_source

ROOT = Path(__file__).parents[2]
MAX_LENGTH = 16
TARGETS = ("query", "value", "output.dense")
WORDS = (  # noqa: SIM905
    "the a it is please turn make set off on up down warm cold bright dark loud quiet light lamp heat music radio "
    "room kitchen hall bed now later very more less play stop open close door window"
).split()
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s", "##er", "##ed", "##ing", "##ly")


def tokenizer() -> Tokenizer:
    """WordPiece over `VOCABULARY`, lower case, [CLS] … [SEP], as BERT's."""
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    special = [{"id": i, "content": word, "special": True} for word, i in list(ids.items())[:4]]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token | flags for token in special],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]]},
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }
    return Tokenizer.from_str(json.dumps(body))


def module() -> Any:
    """The base as transformers has it, with fixed random weights."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(5.0)  # BERT's 0.02 would let nothing show in the output
    return model.eval()


def write_bundle(
    base: Any, task: str, path: Path, planned: Callable[[MemoryPlan], None] = lambda _: None, **options: Any
) -> Path:
    """Convert the base for a task."""
    ids = torch.arange(16).reshape(2, 8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    files = {"tokenizer.json": tokenizer().to_str().encode()}
    facts = {"max_length": MAX_LENGTH, "pad_id": 0}
    source = module_source(base, inputs, "tiny", "torchscript", files=files, facts=facts, outputs=["hidden"])
    chosen = ConvertOptions(**{"task": task, "target_modules": TARGETS} | options)
    convert(source, path, chosen, planned=planned)
    return path


COMMANDS = {"warm": "make the room warm", "bright": "turn the light up", "quiet": "stop the loud music"}
ENDINGS = ("", "now", "please", "in the kitchen", "later in the hall please", "very very very much more now")


def commands(count: int = 24) -> list[dict[str, Any]]:
    """Utterances of three classes in turn, of several lengths, which a tiny base can tell apart."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        label = list(COMMANDS)[i % len(COMMANDS)]
        rows.append({"text": f"{COMMANDS[label]} {ENDINGS[(i // 3) % len(ENDINGS)]}".strip(), "label": label})
    return rows


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """The command `edgelora …` of this checkout, one thread, in a process of its own."""
    return start_python("-m", "edgelora", *arguments)


def start_python(*arguments: str | Path, paths: Sequence[Path] = ()) -> subprocess.Popen[str]:
    """A Python process that finds this checkout's packages, those in `paths` first, and that Ctrl-C reaches."""
    path = os.pathsep.join(map(str, [*paths, ROOT, ROOT / "tools"]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell hands down "ignore"
    )
