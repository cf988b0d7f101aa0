"""The files of an adapter: PEFT's settings and tensors, and the record of its base (docs/adapter-format.md)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgelora.adapter.adapter import Adapter
from edgelora.adapter.fresh import label_problems
from edgelora.adapter.tensor_file import parse_tensors, write_tensors
from edgelora.config import AdapterConfig, LoraConfig
from edgelora.errors import AdapterError, ConfigError
from edgelora.files import write_atomic
from edgelora.manifest import Manifest
from edgelora.methods import LORA, PISSA, UNKNOWN, BaseValues, Floats, beginnings, config_from_peft, method_of
from edgelora.peft_names import named_inside, named_modules, placed

CONFIG_FILE, TENSORS_FILE, RECORD_FILE = "adapter_config.json", "adapter_model.safetensors", "edgelora.json"
FORMAT, FORMAT_VERSION = "edgelora-adapter", (1, 1)
_TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "sentence-embedding": "FEATURE_EXTRACTION",
    "feature-extraction": "FEATURE_EXTRACTION",
    "text-generation": "CAUSAL_LM",
}
_PICKLE = "adapter_model.bin"
_LIMITS = {CONFIG_FILE: 2 << 20, TENSORS_FILE: 2 << 30, RECORD_FILE: 2 << 20}


def to_files(adapter: Adapter) -> dict[str, bytes]:
    """The adapter's files by name; equal adapters give equal bytes."""
    adapter = adapter.saved()
    method, config = adapter.method, adapter.config.without_order(adapter.targets)
    content = write_tensors(adapter.tensors, method, config)
    body = config.to_peft(_TASK_TYPES.get(adapter.task), adapter.targets)
    record = {
        "format": FORMAT,
        "format_version": "1.0" if adapter.method is LORA else ".".join(map(str, FORMAT_VERSION)),
        "base_digest": adapter.base_digest,
        "base_name": adapter.base_name,
        "task": adapter.task,
        "labels": adapter.labels,
        settings_field(config): config.to_dict(),
        "training": dict(adapter.training),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return {CONFIG_FILE: _json(body), RECORD_FILE: _json(record), TENSORS_FILE: content}


def settings_field(config: AdapterConfig) -> str:
    """The field of a record that holds the settings of a method: `lora` of LoRA."""
    return config.peft_type.lower()


def write_adapter(adapter: Adapter, folder: Path, prefix: str = "", head: str | None = None) -> None:
    """Write the adapter's files into `folder`, which PEFT's `from_pretrained` reads.

    With `prefix` or `head`, for a model that holds the base under that path ("bert"), or whose head has that name: then
    without the record of the base, for the names are no longer this base's.

    Raises:
        AdapterError: the folder cannot be written, or the prefix is no dotted path.
    """
    adapter = adapter.saved()
    files = to_files(adapter)
    if prefix or head is not None:
        config, tensors = named_inside(adapter.method, adapter.config, adapter.tensors, prefix, head)
        files = to_files(replace(adapter, config=config, tensors=tensors))
        del files[RECORD_FILE]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, content)
        if RECORD_FILE not in files:
            (folder / RECORD_FILE).unlink(missing_ok=True)  # of an earlier export, with other names
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be written ({error.strerror or error})") from error


def read_adapter(
    folder: Path, manifest: Manifest | None = None, accept_base: bool = False, base: BaseValues = UNKNOWN
) -> Adapter:
    """Read an adapter's folder, ours or PEFT's own.

    PEFT does not record its base's digest: `accept_base` says that it was trained on `manifest`'s base. It may name the
    modules as those of a task model that holds the base (peft_names.py). PiSSA's becomes LoRA, which needs
    `base=bundle`.

    Raises:
        AdapterError: a file is missing, damaged, or says what cannot be represented.
    """
    return parse_adapter(read_files(folder), folder, manifest, accept_base, base)


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of an adapter's folder by name, of those that there are.

    Raises:
        AdapterError: one cannot be read, or is larger than any adapter's.
    """
    if (folder / _PICKLE).exists() and not (folder / TENSORS_FILE).exists():
        raise AdapterError(
            f"{folder / _PICKLE}: a pickle may run any code when it is read; save the adapter again as safetensors "
            "(save_pretrained(..., safe_serialization=True))"
        )
    found = {name: read_bytes(folder / name, limit) for name, limit in _LIMITS.items() if name != RECORD_FILE}
    if (folder / RECORD_FILE).exists():
        found[RECORD_FILE] = read_bytes(folder / RECORD_FILE, _LIMITS[RECORD_FILE])
    return found


def parse_adapter(
    files: Mapping[str, bytes],
    folder: Path,
    manifest: Manifest | None = None,
    accept_base: bool = False,
    base: BaseValues = UNKNOWN,
) -> Adapter:
    """The adapter whose files these are; `folder` says in errors where they lie. See `read_adapter`."""
    config = config_from_peft(_json_of(files[CONFIG_FILE], folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    content = files[TENSORS_FILE]
    tensors = parse_tensors(content, folder / TENSORS_FILE, config)
    if RECORD_FILE in files:
        return _with_record(config, tensors, content, _json_of(files[RECORD_FILE], folder / RECORD_FILE), folder)
    if manifest is None or not accept_base:
        raise AdapterError(
            f"{folder}: the adapter does not say which base it belongs to (no {RECORD_FILE}); if it is this bundle's, "
            "say so with --accept-base"
        )
    try:
        config, tensors = placed(method_of(config), config, tensors, manifest)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from error
    adapter = Adapter(config, tensors, manifest.base_digest, manifest.task, manifest.name)
    return _beside_whole_base(adapter, folder, manifest, base) if adapter.method is PISSA else adapter


def _beside_whole_base(adapter: Adapter, folder: Path, manifest: Manifest, base: BaseValues) -> Adapter:
    """PEFT's PiSSA adapter, made for W − s·A0·B0, as LoRA beside W. A0·B0 follows from W.

    Raises:
        AdapterError: the adapter does not fit, or W is not known.
    """
    config, points = cast(LoraConfig, adapter.config), adapter.joined(manifest)
    replace(adapter, config=replace(config, init_lora_weights=True)).validate(manifest)  # A and B are as LoRA's
    try:
        if problems := adapter.method.problems(config, adapter.tensors, points):
            raise ConfigError("\n".join(problems))
        first = beginnings(config, points, np.random.default_rng(0), base)
    except ConfigError as error:
        raise AdapterError(
            f"{folder}: init_lora_weights='pissa' has changed the base that the adapter is for: {error}"
        ) from error
    return adapter.with_tensors({**adapter.tensors, **first}).saved()


def _with_record(
    config: AdapterConfig, tensors: dict[str, Floats], content: bytes, record: dict[str, Any], folder: Path
) -> Adapter:
    path = folder / RECORD_FILE
    if record.get("format") != FORMAT or str(record.get("format_version", "")).split(".")[0] != str(FORMAT_VERSION[0]):
        raise AdapterError(
            f"{path}: format {record.get('format')} {record.get('format_version')} is not known to this runtime"
        )
    if record.get("sha256") != hashlib.sha256(content).hexdigest():
        raise AdapterError(f"{folder / TENSORS_FILE}: does not have the sha256 that {RECORD_FILE} gives: it is damaged")
    labels = record.get("labels")
    valid = (
        all(isinstance(record.get(k), str) for k in ("base_digest", "base_name", "task"))
        and isinstance(record.get("training"), dict)
        and isinstance(record.get(settings_field(config)), dict)
        and (labels is None or (isinstance(labels, list) and _are_labels(cast("list[object]", labels))))
    )
    if not valid:
        raise AdapterError(f"{path}: a field is missing or malformed")
    named = config.from_peft({"peft_type": config.peft_type, **record[settings_field(config)]}, str(path))
    method = method_of(config)
    if method is PISSA:
        raise AdapterError(
            f"{path}: the settings say init_lora_weights={cast(LoraConfig, config).init_lora_weights!r}, where what "
            "PiSSA learned is saved as LoRA: they are altered, copy the adapter again"
        )
    points = named_modules(method, tensors)
    if method.decisive(named, points) != method.decisive(config, points):
        raise AdapterError(f"{path}: disagrees with {CONFIG_FILE} on what the adapter computes, as on rank or alpha")
    return Adapter(
        named,
        tensors,
        record["base_digest"],
        record["task"],
        record["base_name"],
        None if labels is None else tuple(cast("list[str]", labels)),
        record["training"],
    )


def _are_labels(values: list[object]) -> bool:
    return all(isinstance(x, str) for x in values) and not label_problems(cast("list[str]", values))


def _json(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _json_of(content: bytes, path: Path) -> dict[str, Any]:
    try:
        body = json.loads(content.decode("utf-8"))
        if b"\\u" in content:
            json.dumps(body, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be written again
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(body, dict):
        raise AdapterError(f"{path}: not a JSON object")
    return cast("dict[str, Any]", body)


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes.

    Raises:
        AdapterError: there is none, or it is larger.
    """
    try:
        if not path.is_file() and path.exists():
            raise AdapterError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)  # a buffer of that size is made first
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > limit:
        raise AdapterError(f"{path}: larger than any adapter (more than {limit:,} bytes)")
    return content
