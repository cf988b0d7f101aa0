"""Models of transformers with the checkpoint's weights alone: none is drawn at random because one is not there."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgelora.errors import ConversionError
from edgelora_tools.normalize import onnx_errors

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # for every `from_pretrained`
_NAMED = 5


def load_pretrained(
    auto: Any, folder: Path, where: Path, spare: Sequence[str] = (), **options: Any
) -> tuple[Any, set[str]]:
    """The model that `auto` (a class of transformers) finds in `folder`, in float32 with eager attention; and which of
    the `spare` modules and tensors the checkpoint is without, as it may be.

    `where` names the checkpoint in messages.

    Raises:
        ConversionError: it cannot be loaded, or lacks tensors that the configuration asks for, or has them in other
            shapes; they are named.
    """
    import torch

    progress = contextlib.redirect_stderr(io.StringIO())
    with onnx_errors(f"{where}: transformers cannot load it"), progress:
        module, found = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else only a report on the terminal tells which they are
            **LOCAL,
            **options,
        )
    missing = {name: set(spare).intersection(name.split(".")) for name in sorted(found["missing_keys"])}
    lacks = [name for name, spared in missing.items() if not spared]
    shapes = [
        f"{name} is {list(own)} and should be {list(asked)}" for name, own, asked in sorted(found["mismatched_keys"])
    ]
    if lacks or shapes:
        raise ConversionError(f"{where}: its weights are not those of its configuration: {_told(lacks, shapes)}")
    return module, set().union(*missing.values())


def _told(lacks: list[str], shapes: list[str]) -> str:
    parts = [f"there is no {lacks[0]}" + _more(len(lacks) - 1)] if lacks else []
    if shapes:
        parts.append(", ".join(shapes[:_NAMED]) + _more(len(shapes) - _NAMED))
    return "; ".join(parts)


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
