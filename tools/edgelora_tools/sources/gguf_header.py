"""What a GGUF file says of itself, read before anything is made of it: is it whole, and can its codes be read?

The layout is that of ggml's docs/gguf.md: a magic, the version, two counts, the facts, and where each tensor lies. The
reader of the package gguf makes an array of every token, tells of a cut file by a shape or an index of numpy's, and
does not end where the length of an array lies: it goes on behind the file's end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from edgelora.errors import ConversionError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMS, _NAMED = 4, 3
_ALIGNMENT, _TOKENS = "general.alignment", "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Tensor:
    """A tensor: its sizes, the number of its type, and its place in bytes behind the header."""

    name: str
    shape: Sequence[int]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """The facts that are single numbers or texts, the tensors, where their data begin, and the vocabulary."""

    facts: dict[str, str | int | float | bool]
    tensors: tuple[Tensor, ...]
    data: int
    tokens: tuple[str, ...] = ()


def check_gguf(path: Path) -> Header:
    """Hold a file against its header, which is returned.

    Raises:
        ConversionError: it is no GGUF file, is one of several parts, ends early, or has codes that gguf does not know.
    """
    import gguf

    with path.open("rb") as file:
        size = path.stat().st_size
        header = _Reader(file, size, path).header()
    if (parts := header.facts.get("split.count", 1)) not in (0, 1):
        raise ConversionError(f"{path}: one of {parts} parts: put them together (llama-gguf-split --merge)")
    known = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    layers = header.facts.get(f"{header.facts.get('general.architecture')}.block_count", 0)
    if not isinstance(layers, int) or layers > len(header.tensors):
        raise ConversionError(f"{path}: its header names {layers!r} layers, and {len(header.tensors)} tensors")
    strange = [f"{t.name} (type {t.type})" for t in header.tensors if t.type not in known]
    if strange:
        raise ConversionError(f"{path}: tensors in codes that nothing here reads: {_some(strange)}")
    ends = [header.data + t.offset + _bytes(t, known[t.type]) for t in header.tensors]
    beyond = [t.name for t, end in zip(header.tensors, ends, strict=True) if end > size]
    if beyond:
        raise ConversionError(
            f"{path}: is not whole: it has {size:,} bytes, and its tensors take {max(ends):,} ({_some(beyond)}); fetch "
            "it again"
        )
    return header


def _bytes(tensor: Tensor, sizes: tuple[int, int]) -> int:
    """How many bytes the tensor takes: its type has blocks of so many numbers and so many bytes."""
    block, width = sizes
    return -(-prod(tensor.shape) // block) * width


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


class _Reader:
    """Reads a header from its beginning, never beyond the end of the file."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file, self._size, self._path = file, size, path
        self._tokens: tuple[str, ...] = ()

    def header(self) -> Header:
        """All of it. Raises ConversionError."""
        if self._file.read(len(MAGIC)) != MAGIC:
            raise ConversionError(f"{self._path}: not a GGUF file: it does not begin with {MAGIC.decode()}")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise ConversionError(f"{self._path}: GGUF of version {version}; 2 and 3 are read")
        tensors, facts = int(self._number("<Q")), int(self._number("<Q"))
        found = {name: value for name, value in (self._fact() for _ in range(facts)) if value is not None}
        listed = tuple(self._tensor() for _ in range(tensors))
        alignment = found.get(_ALIGNMENT, 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._malformed(f"{_ALIGNMENT} {alignment!r}")
        return Header(found, listed, -(-self._file.tell() // alignment) * alignment, self._tokens)

    def _fact(self) -> tuple[str, str | int | float | bool | None]:
        name, kind = self._text(), int(self._number("<I"))
        if kind == _ARRAY:
            self._array(name)
            return name, None
        return name, self._text() if kind == _STRING else self._number(self._format(kind))

    def _array(self, name: str) -> None:
        """Read the vocabulary; skip any other."""
        kind, count = int(self._number("<I")), int(self._number("<Q"))
        if kind != _STRING:
            self._skip(count * struct.calcsize(self._format(kind)))
            return
        if name == _TOKENS:
            read = (self._take(int(self._number("<Q"))) for _ in range(count))
            self._tokens = tuple(token.decode(errors="replace") for token in read)
            return
        for _ in range(count):
            self._skip(int(self._number("<Q")))

    def _tensor(self) -> Tensor:
        name, dims = self._text(), int(self._number("<I"))
        if dims > _MOST_DIMS:
            raise self._malformed(f"tensor {name} of {dims} dimensions")
        shape = [int(self._number("<Q")) for _ in range(dims)]
        return Tensor(name, shape, int(self._number("<I")), int(self._number("<Q")))

    def _format(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._malformed(f"a value of type {kind}")
        return _SCALARS[kind]

    def _number(self, layout: str) -> int | float | bool:
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return value

    def _text(self) -> str:
        content = self._take(int(self._number("<Q")))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._malformed(f"{content[:40]!r} is not UTF-8") from error

    def _take(self, count: int) -> bytes:
        self._within(count)
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        self._within(count)
        self._file.seek(count, 1)

    def _within(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise ConversionError(f"{self._path}: ends within its header: the file is not whole; fetch it again")

    def _malformed(self, what: str) -> ConversionError:
        return ConversionError(f"{self._path}: its header is malformed: {what}")
