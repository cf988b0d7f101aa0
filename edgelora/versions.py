"""A version of an adapter on disk: its files with their digests, or all in one that a key encrypts and signs.

Without a key: the adapter's own files, and `SHA256SUMS` (as `sha256sum -c` reads it). With one: `adapter.sealed`, whose
content is a line of JSON, the sizes by name, and then the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from edgelora.adapter import CONFIG_FILE, TENSORS_FILE, Adapter, parse_adapter, read_bytes, read_files
from edgelora.errors import AdapterError, StoreError
from edgelora.sealing import DamagedSeal, Key, unsealed

SUMS_FILE, SEALED_FILE = "SHA256SUMS", "adapter.sealed"
_SUMS_LIMIT, _SEALED_LIMIT = 1 << 16, 2 << 30


def version_files(files: Mapping[str, bytes], key: Key | None, purpose: str) -> dict[str, bytes]:
    """What is written for an adapter's files. `purpose` names the adapter and the version."""
    if key is not None:
        return {SEALED_FILE: key.seal(_packed(files), purpose)}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    return {**files, SUMS_FILE: sums.encode()}


def read_version(path: Path, key: Key | None, purpose: str) -> dict[str, bytes]:
    """The adapter's files, as they were saved.

    Raises:
        AdapterError: one is missing, damaged or altered.
        StoreError: it is encrypted and there is no key, or another one; or there is a key and it is not encrypted.
    """
    if (path / SEALED_FILE).exists():
        content = read_bytes(path / SEALED_FILE, _SEALED_LIMIT)
        try:
            return _unpacked(unsealed(key, content, purpose))
        except (DamagedSeal, ValueError, RecursionError, TypeError, AttributeError) as error:
            raise AdapterError(f"{path / SEALED_FILE}: {error}") from error
    if key is not None:
        raise StoreError(f"{purpose}: it is not encrypted, and with a key only what the key signed is read")
    files = read_files(path)
    for name, digest in _sums(path / SUMS_FILE).items():
        if name in files and hashlib.sha256(files[name]).hexdigest() != digest:
            raise AdapterError(f"{path / name}: does not have the sha256 that {SUMS_FILE} gives: it is damaged")
    return files


def open_version(path: Path, key: Key | None, purpose: str) -> Adapter:
    """The adapter of a version. Raises as `read_version` does, and AdapterError for what is no adapter."""
    return parse_adapter(read_version(path, key, purpose), path)


def _sums(path: Path) -> dict[str, str]:
    """The digests by file name; none in a version that was saved without them."""
    if not path.exists():
        return {}
    lines = read_bytes(path, _SUMS_LIMIT).decode("ascii", "replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _packed(files: Mapping[str, bytes]) -> bytes:
    sizes = {name: len(content) for name, content in sorted(files.items())}
    return json.dumps(sizes).encode() + b"\n" + b"".join(files[name] for name in sizes)


def _unpacked(content: bytes) -> dict[str, bytes]:
    head, _, rest = content.partition(b"\n")
    files: dict[str, bytes] = {}
    for name, size in cast("dict[str, int]", json.loads(head)).items():
        files[name], rest = rest[:size], rest[size:]
    if CONFIG_FILE not in files or TENSORS_FILE not in files:
        raise ValueError("it holds no adapter")
    return files
