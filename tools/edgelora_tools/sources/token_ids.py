"""The ids of a tokenizer.json beside those of its model: none too many, and those of a GGUF file the same tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgelora.errors import ConversionError
from edgelora_tools.normalize import onnx_errors


def check_ids(tokenizer: bytes, vocabulary: int, where: Path) -> None:
    """Raise ConversionError if the tokenizer has ids that the model's vocabulary has no row for."""
    largest = max(_tokens(tokenizer, where), default=0)
    if largest >= vocabulary:
        raise ConversionError(
            f"{where}: the tokenizer has ids up to {largest}, the model {vocabulary} tokens: they do not belong "
            "together; give the model's own tokenizer.json (--tokenizer FILE)"
        )


def check_tokens(header: Sequence[str], tokenizer: bytes, where: Path, model: Path) -> None:
    """Hold a tokenizer, named by `where`, against the vocabulary in the header of a GGUF file.

    Raises:
        ConversionError: of the ids that both have, most are other tokens.
    """
    shared = {i: token for i, token in _tokens(tokenizer, where).items() if i < len(header)}
    other = [i for i, token in shared.items() if token != header[i]]
    if shared and len(other) > len(shared) / 2:
        first = min(other)
        raise ConversionError(
            f"{where}: not the tokenizer of {model}: of {len(shared)} ids {len(other)} are other tokens there, as "
            f"{first}, {shared[first]!r} here and {header[first]!r} there; leave --tokenizer out: the file has its own"
        )


def _tokens(tokenizer: bytes, where: Path) -> dict[int, str]:
    """The tokens of a tokenizer.json, whose vocabulary is a mapping to ids, or a list in their order."""
    with onnx_errors(f"{where}: not a tokenizer.json of the tokenizers library"):
        body: Mapping[str, Any] = json.loads(tokenizer)
        vocabulary: Any = body["model"].get("vocab") or ()
        if isinstance(vocabulary, dict):
            found = {int(i): str(token) for token, i in vocabulary.items()}
        else:
            found = {i: str(token) for i, (token, _) in enumerate(vocabulary)}
        return found | {int(token["id"]): str(token["content"]) for token in body.get("added_tokens", [])}
