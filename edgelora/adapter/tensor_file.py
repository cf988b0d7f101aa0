"""The tensors of an adapter as safetensors, under PEFT's names and in its orientation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
from safetensors.numpy import save

from edgelora.adapter.adapter import listed
from edgelora.config import AdapterConfig
from edgelora.errors import AdapterError
from edgelora.methods import Floats, Method, method_of, split_name
from edgelora.peft_names import what_is

_ROOT, _PREFIX = "base_model.", "base_model.model."
_HEADER_LIMIT = 8 << 20
_MOST_AXES = 5


def write_tensors(tensors: Mapping[str, Floats], method: Method, config: AdapterConfig) -> bytes:
    """The file's content; equal tensors give equal bytes."""
    written = {
        _disk_name(method, name): np.ascontiguousarray(method.to_disk(config, name, tensors[name]), np.float32)
        if _is_methods(method, name)
        else np.ascontiguousarray(tensors[name], np.float32)
        for name in sorted(tensors)
    }
    return save(written, {"format": "pt"})


def parse_tensors(content: bytes, path: Path, config: AdapterConfig) -> dict[str, Floats]:
    """The tensors of the file at `path`, by the names that they have here.

    Raises:
        AdapterError: it is damaged, or holds what is no tensor of the method and no head: all are named.
    """
    if int.from_bytes(content[:8], "little") > _HEADER_LIMIT:
        raise AdapterError(f"{path}: not a safetensors file of an adapter: its header would have more than 8 MiB")
    try:
        entries = cast("list[tuple[str, dict[str, Any]]]", safetensors.deserialize(content))  # pyright: ignore[reportUnknownMemberType]
        repeated = _repeated_keys(content)
    except (safetensors.SafetensorError, ValueError, OverflowError, RecursionError) as error:
        raise AdapterError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
    tensors: dict[str, Floats] = {}
    method = method_of(config)
    problems = [f"{key} is there twice" for key in repeated]
    for key, entry in sorted(entries, key=lambda item: item[0]):
        name = _graph_name(method, config, key)
        array = _float32(entry["dtype"], entry["data"], entry["shape"])
        if name is None:
            problems.append(f"{key} {what_is(key)}")
        elif name in tensors:
            problems.append(f"{key} is there twice")
        elif array is None:
            problems.append(
                f"{key} is {entry['dtype']} {entry['shape']}; F32, F16 and BF16 with at most {_MOST_AXES} axes are read"
            )
        elif not np.isfinite(array).all():
            problems.append(f"{key} holds NaN or infinity: its training diverged, or the file is damaged")
        else:
            turned = method.from_disk(config, name, array) if _is_methods(method, name) else _of_head(array)
            tensors[name] = np.array(turned, np.float32, order="C")
    if problems:
        raise AdapterError(f"{path}: cannot be used:\n{listed(problems)}")
    return tensors


def _of_head(array: Floats) -> Floats:
    """A head's tensor; the kernel of a convolution of one pixel is a matrix `[outputs, channels]`."""
    return array.reshape(array.shape[:2]) if array.ndim == 4 and array.shape[2:] == (1, 1) else array


def _repeated_keys(content: bytes) -> list[str]:
    """The names that a complete safetensors file holds more than once: its format forbids them, its parser does not."""
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.extend(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        return found

    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")], object_pairs_hook=note_repeated)
    return repeated


def _float32(dtype: str, data: bytes | bytearray, shape: Sequence[int]) -> Floats | None:
    """The array as real numbers, or None if it is of another type or of a shape that no adapter has."""
    if len(shape) > _MOST_AXES or any(size > len(data) for size in shape):
        return None
    if dtype == "F32":
        return np.frombuffer(data, "<f4").reshape(shape)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return None


def _is_methods(method: Method, name: str) -> bool:
    """Whether a tensor is the method's, not the head's."""
    return name in method.shared or split_name(name)[1] in method.disk


def _root(method: Method) -> str:
    """What the paths of modules begin with: where a method has none of its own, PEFT wraps no model around the base."""
    return _PREFIX if method.disk else _ROOT


def _shared_name(method: Method, name: str) -> str:
    return _ROOT + name if method.disk else name


def _disk_name(method: Method, name: str) -> str:
    if name in method.shared:
        return _shared_name(method, name)
    point, suffix = split_name(name)
    return f"{_PREFIX}{point}.{method.disk[suffix]}" if suffix in method.disk else _root(method) + name


def _graph_name(method: Method, config: AdapterConfig, key: str) -> str | None:
    for name in method.shared:
        if key == _shared_name(method, name):
            return name
    root = _root(method)
    if not key.startswith(root):
        return None
    name = key.removeprefix(root)
    head = name.replace(".modules_to_save.", ".")
    if split_name(head)[0] in (config.modules_to_save or ()):
        return head
    for suffix, written in method.disk.items():
        if name.endswith(f".{written}"):
            return f"{name.removesuffix(written)}{suffix}"
    return head if head.endswith((".weight", ".bias")) and head.count(".") == 1 else None
