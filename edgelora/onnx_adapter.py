"""ONNX Runtime's adapter files (`.onnx_adapter`): the tensors of one adapter, by the graph inputs that they feed.

They hold B multiplied by the scale, and nothing of alphas, labels or the training. `model_version` is free for the
writer: here it says which base and task the adapter is for.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter, head_names
from edgelora.config import LoraConfig, unscaled
from edgelora.errors import AdapterError, ConfigError
from edgelora.files import write_atomic
from edgelora.manifest import LORA_GRAPHS, Manifest
from edgelora.session import ort

ADAPTER_VERSION = 1
_MARK = b"TORT"  # the identifier of the file format, at byte 4
_LIMIT = 2 << 30
_TYPES = ("float32", "float16")

Floats = NDArray[np.float32]


def is_onnx_adapter(path: Path) -> bool:
    """Whether the file begins as ONNX Runtime's adapters do."""
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == _MARK
    except OSError:
        return False


def model_version(manifest: Manifest) -> int:
    """31 bits that tell one base and task from another: the first of the sha256 of "DIGEST TASK"."""
    digest = hashlib.sha256(f"{manifest.base_digest} {manifest.task}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def write_onnx_adapter(adapter: Adapter, manifest: Manifest, path: Path) -> None:
    """Write what `forward.onnx` takes of the adapter: B' = s·B, rank 0 where it joins no point, the head.

    A program gives the file to `RunOptions.add_active_adapter` and feeds the model's own inputs alone.

    Raises:
        AdapterError: it does not fit the bundle, runs in other graphs, or the file cannot be written.
    """
    adapter.validate(manifest)
    if adapter.method.graphs != LORA_GRAPHS:
        raise AdapterError(
            f"a {adapter.method.graphs} adapter runs in graphs of its own, with other inputs than {manifest.forward}: "
            "export it to peft"
        )
    content = ort.AdapterFormat()
    content.set_adapter_version(ADAPTER_VERSION)
    content.set_model_version(model_version(manifest))
    feeds = adapter.feeds(manifest)
    content.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(feeds[name]) for name in sorted(feeds)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / "adapter"
            content.export_adapter(str(made))
            write_atomic(path, made.read_bytes())
    except OSError as error:
        raise AdapterError(f"{path}: cannot be written ({error.strerror or error})") from error
    except Exception as error:  # onnxruntime has one exception class per status
        raise AdapterError(f"{path}: ONNX Runtime cannot write it ({_first_line(error)})") from error


def read_onnx_adapter(path: Path, manifest: Manifest, accept_base: bool = False) -> Adapter:
    """Read an adapter for this bundle's graph. Its scale is 1 at every point: B has been multiplied already.

    `accept_base` says that it was made for `manifest`'s base, where its `model_version` does not.

    Raises:
        AdapterError: the file is damaged, another base's, or holds what the graph does not take.
    """
    parameters, version = _parameters(path)
    if version != model_version(manifest) and not accept_base:
        raise AdapterError(
            f"{path}: the adapter does not say that it belongs to this base and task (model_version {version}, theirs "
            f"is {model_version(manifest)}); if it does, say so with --accept-base"
        )
    factors = {name for point in manifest.points for name in (point.input_a, point.input_b)}
    known = factors.union(head_names(manifest))
    problems = [
        f"{name} is no input of this bundle's graph (`edgelora points` lists its points)"
        for name in parameters
        if name not in known
    ]
    problems += [
        f"{name} is {tensor.dtype}; {' and '.join(_TYPES)} are read"
        for name, tensor in parameters.items()
        if tensor.dtype not in _TYPES
    ]
    if problems:
        raise AdapterError(f"{path}: cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
    tensors = {n: np.array(t, np.float32) for n, t in parameters.items() if t.size or n not in factors}
    try:
        adapter = Adapter(_config(tensors, manifest), tensors, manifest.base_digest, manifest.task, manifest.name)
        adapter.validate(manifest)
    except (AdapterError, ConfigError) as error:
        raise AdapterError(f"{path}: {error}") from error
    return adapter


def _parameters(path: Path) -> tuple[Mapping[str, NDArray[Any]], int]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from error
    if size > _LIMIT:
        raise AdapterError(f"{path}: larger than any adapter (more than {_LIMIT:,} bytes)")
    try:
        content = ort.AdapterFormat.read_adapter(str(path))
        parameters = content.get_parameters()
        return {str(name): value.numpy() for name, value in parameters.items()}, int(content.get_model_version())
    except Exception as error:  # onnxruntime has one exception class per status
        raise AdapterError(f"{path}: no complete .onnx_adapter file ({_first_line(error)}); copy it again") from error


def _config(tensors: Mapping[str, Floats], manifest: Manifest) -> LoraConfig:
    """Settings with the ranks of these tensors and a scale of 1."""
    ranks = {
        point.id: tensors[point.input_a].shape[0 if point.kernel else -1]
        for point in manifest.points
        if point.input_a in tensors and tensors[point.input_a].ndim > 1
    }
    return replace(unscaled(ranks), modules_to_save=None if manifest.head is None else (manifest.head.name,))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]
