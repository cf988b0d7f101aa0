"""Numbered records of bytes, in memory or in a file: complete or absent, and never silently other than written.

The file: `ELRECORD`, the header's length (uint64), the header (JSON: the facts that it holds for), the sizes of the
records (int64 each; 0: not held), their CRC-32 (uint32 each), the CRC-32 of all before (uint32), the records. All
numbers are little-endian. It is written under another name, private to its owner, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgelora.files import TEMPORARY_PREFIX, make_folder, sync_folder

_MAGIC = b"ELRECORD"
_HEADER_LIMIT = 1 << 20


class DamagedRecord(Exception):
    """A record does not have the bytes that were written."""


class Records(Protocol):
    """Records that are written once each, and then read. `size` is their bytes."""

    size: int

    def write(self, number: int, content: bytes) -> None: ...

    def finish(self) -> Records:
        """Make them readable; nothing is written any more."""
        ...

    def abandon(self) -> None:
        """Drop them unless they are finished."""
        ...

    def close(self) -> None: ...

    def holds(self, number: int) -> bool: ...

    def read(self, number: int) -> bytes | memoryview:
        """Raises DamagedRecord if the bytes are not those that were written."""
        ...

    def table(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """The bytes of these records, a row each, `[records, size]`; None where they cannot be had all at once."""
        ...


class RecordsInMemory:
    """Records of these sizes; a size of 0 is a record that is not held."""

    def __init__(self, sizes: NDArray[np.int64]) -> None:
        self._sizes = sizes
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self.size = int(self._offsets[-1])
        self._buffer = memoryview(bytearray(self.size))
        even = int(sizes[0]) if len(sizes) and (sizes == sizes[0]).all() else 0
        self._table = np.frombuffer(self._buffer, np.uint8).reshape(-1, even) if even else None

    def write(self, number: int, content: bytes) -> None:
        self._buffer[self._offsets[number] : self._offsets[number + 1]] = content

    def finish(self) -> RecordsInMemory:
        return self

    def abandon(self) -> None:
        pass

    def close(self) -> None:
        self._buffer, self._table = memoryview(b""), None

    def holds(self, number: int) -> bool:
        return bool(self._sizes[number])

    def read(self, number: int) -> memoryview:
        return self._buffer[self._offsets[number] : self._offsets[number + 1]]

    def table(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        return None if self._table is None else self._table.take(numbers, axis=0)


class RecordFile:
    """Records in a file; see `create` and `open`. Of the file nothing is kept in memory but sizes and checksums."""

    def __init__(self, path: Path, file: Any, facts: Mapping[str, Any], sizes: NDArray[np.int64]) -> None:
        self.path, self.facts, self._file, self.sizes = path, {**facts, "records": len(sizes)}, file, sizes
        self._header = json.dumps(self.facts, sort_keys=True).encode()
        self._checks = np.zeros(len(sizes), np.uint32)
        self._start = len(_MAGIC) + 8 + len(self._header) + 12 * len(sizes) + 4
        self._offsets = self._start + np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self.size = int(sizes.sum())
        self._temporary: Path | None = None

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any], sizes: NDArray[np.int64]) -> RecordFile:
        """Begin a file that will appear at `path` when it is finished. Raises OSError."""
        make_folder(path.parent)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        made = cls(path, os.fdopen(os.open(temporary, flags, 0o600), "r+b"), facts, sizes)
        made._temporary = temporary
        return made

    @classmethod
    def open(cls, path: Path, facts: Mapping[str, Any]) -> RecordFile | None:
        """The finished file at `path`, if it is whole and its facts are these; the header may hold more of them."""
        try:
            file = path.open("rb")
        except OSError:
            return None
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            try:
                opened = cls._read(path, file, facts)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
                return None
            if opened is not None:
                stack.pop_all()
            return opened

    @classmethod
    def _read(cls, path: Path, file: Any, facts: Mapping[str, Any]) -> RecordFile | None:
        before = file.read(len(_MAGIC) + 8)
        length = struct.unpack("<Q", before[len(_MAGIC) :])[0]
        if not before.startswith(_MAGIC) or length > _HEADER_LIMIT:
            return None
        header = file.read(length)
        body = json.loads(header)
        count = body["records"]
        whole = os.fstat(file.fileno()).st_size
        if any(body.get(name) != value for name, value in facts.items()) or not 0 <= 12 * count <= whole:
            return None
        table = file.read(12 * count)
        (check,) = struct.unpack("<I", file.read(4))
        if check != zlib.crc32(before + header + table):
            return None
        sizes = np.frombuffer(table, "<i8", count)
        if ((sizes < 0) | (sizes > whole)).any():
            return None
        opened = cls(path, file, body, sizes)
        opened._header = header
        opened._checks = np.frombuffer(table, "<u4", count, 8 * count)
        return opened if whole == opened._offsets[-1] else None

    def write(self, number: int, content: bytes) -> None:
        self._file.seek(int(self._offsets[number]))
        self._file.write(content)
        self._checks[number] = zlib.crc32(content)

    def finish(self) -> RecordFile:
        """Write the tables, flush, and rename. Raises OSError."""
        assert self._temporary is not None
        before = _MAGIC + struct.pack("<Q", len(self._header)) + self._header
        before += self.sizes.astype("<i8").tobytes() + self._checks.astype("<u4").tobytes()
        self._file.seek(0)
        self._file.write(before + struct.pack("<I", zlib.crc32(before)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._temporary.replace(self.path)
        self._temporary = None
        sync_folder(self.path.parent)
        return self

    def touch(self) -> None:
        """Note that it is used now."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def abandon(self) -> None:
        if self._temporary is not None:
            self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            self._temporary = None

    def close(self) -> None:
        self._file.close()

    def holds(self, number: int) -> bool:
        return bool(self.sizes[number])

    def table(self, numbers: NDArray[np.int64]) -> None:
        """None: a record is read and checked by itself."""

    def read(self, number: int) -> bytes:
        try:
            self._file.seek(int(self._offsets[number]))
            content = self._file.read(int(self.sizes[number]))
        except OSError as error:
            raise DamagedRecord(f"{self.path}: record {number} cannot be read ({error.strerror or error})") from error
        if zlib.crc32(content) != self._checks[number] or len(content) != self.sizes[number]:
            raise DamagedRecord(f"{self.path}: record {number} does not have its checksum")
        return content
