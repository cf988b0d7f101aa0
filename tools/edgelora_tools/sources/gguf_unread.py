"""What a GGUF file says that transformers' reader passes over: without it the model would compute something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgelora.errors import ConversionError
from edgelora_tools.sources.gguf_header import Header

_TURNS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # of Llama 3.1, of Phi-3 128k
_SCALINGS = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear")
_PLAIN = ("none", 1, 1.0)
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # fact and attribute have one name


def check_read(path: Path, header: Header, config: Any) -> None:
    """Hold the configuration that transformers made of a file against the file's header.

    Raises:
        ConversionError: it lacks how positions turn, or at what the logits are capped.
    """
    rotations = set(getattr(config, "rope_parameters", None) or {})
    unread = [t.name for t in header.tensors if t.name in _TURNS]
    if "rope_type" not in rotations or config.rope_parameters["rope_type"] == "default":
        unread += [f"{name} = {fact}" for name in _SCALINGS if (fact := _fact(header, name)) not in (None, *_PLAIN)]
    for name in _CAPS:
        fact, read = _fact(header, name), getattr(config, name, None)
        if fact is not None and fact != read:
            unread.append(f"{name} = {fact} (it takes {read})")
    if unread:
        raise ConversionError(
            f"{path}: transformers does not read {', '.join(unread)} from a GGUF file, and would compute "
            "another model; convert its Hugging Face directory instead"
        )


def limit_to_window(header: Header, config: Any) -> None:
    """Where transformers reads no window of attention, no more tokens than see the same without one."""
    window = _fact(header, "attention.sliding_window")
    if isinstance(window, int) and window > 0 and not getattr(config, "sliding_window", None):
        config.max_position_embeddings = min(config.max_position_embeddings, window)


def _fact(header: Header, name: str) -> str | int | float | bool | None:
    return header.facts.get(f"{header.facts.get('general.architecture')}.{name}")
