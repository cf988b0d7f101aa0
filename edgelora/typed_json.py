"""Values of JSON as annotated types: frozen dataclasses of these, tuples, mappings, and what JSON has itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def read_typed(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as the annotated type `kind`; `where` is the path to its field, empty for the whole manifest.

    Raises:
        ValueError: it has another form; names the field.
    """
    if get_origin(kind) is UnionType:
        kind = next((one for one in get_args(kind) if _fits(one, value)), kind)
    if not _fits(kind, value):
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise ValueError(f"{where} must be {name}, not {json.dumps(value)[:60]}")
    if is_dataclass(kind):
        return _read_fields(kind, value, where)
    if get_origin(kind) is Mapping:
        return {key: read_typed(get_args(kind)[1], one, f"{where}[{key!r}]") for key, one in value.items()}
    if get_origin(kind) is tuple:
        return tuple(read_typed(get_args(kind)[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    return value


def _read_fields(kind: Any, body: Mapping[str, Any], where: str) -> Any:
    """A dataclass; keys that a later minor version added are passed over."""
    hints = get_type_hints(kind)
    missing = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING and f.name not in body]
    if missing:
        raise ValueError(f"{where or 'the manifest'} has no {', '.join(missing)}")
    return kind(
        **{key: read_typed(hints[key], one, f"{where}.{key}".lstrip(".")) for key, one in body.items() if key in hints}
    )


def _fits(kind: Any, value: Any) -> bool:
    """Whether a JSON value has the outer form of `kind`."""
    form = dict if is_dataclass(kind) or get_origin(kind) is Mapping else list if get_origin(kind) is tuple else kind
    return kind is Any or type(value) is form
