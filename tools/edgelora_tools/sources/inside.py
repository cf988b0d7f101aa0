"""Tensors inside a source by name: what to say of a name that is none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from edgelora.errors import ConversionError

EVERY = "?"  # a name that no tensor has: its error lists all
_SHOWN = 8

Shapes = Mapping[str, Sequence[int | str | None] | None]


def no_tensor(wanted: str, shapes: Shapes) -> ConversionError:
    """The error for a name that is none of those of `shapes`: close ones with shapes, or all if `EVERY` is asked."""
    if wanted == EVERY:
        return ConversionError("\n  ".join(["the source's tensors, in its order:", *_listed(shapes, list(shapes))]))
    holding = [name for name in shapes if wanted.lower() in name.lower()]
    close = list(dict.fromkeys([*holding, *get_close_matches(wanted, list(shapes), _SHOWN, 0.4)]))
    lines = [f"the source has no tensor {wanted!r} (--source-output '{EVERY}' lists all)"]
    if close:
        lines = [f"{lines[0]}; close to it are", *_listed(shapes, close[:_SHOWN])]
    return ConversionError("\n  ".join(lines))


def _listed(shapes: Shapes, names: Sequence[str]) -> list[str]:
    return [name if (shape := shapes[name]) is None else f"{name} {_shape(shape)}" for name in names]


def _shape(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"
