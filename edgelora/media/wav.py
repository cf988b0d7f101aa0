"""Wav files: PCM of 8 to 32 bits and floating point, as samples between −1 and 1, the mean of the channels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import DataError

Samples = NDArray[np.float32]
SUFFIXES = (".wav",)
MOST_BYTES = 100_000_000  # of a file
RATES = (1_000, 192_000)  # Hz
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_CODINGS = {_PCM: "integers", _FLOAT: "floating point", 2: "ADPCM", 6: "A-law", 7: "µ-law", 0x11: "ADPCM", 0x55: "MP3"}
_MOST_CHANNELS = 32
_OTHERS = {  # by how a file begins
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"\xff\xf3": "MP3",
    b"\xff\xf1": "AAC",
    b"\xff\xf9": "AAC",
    b"OggS": "Ogg",
    b"fLaC": "FLAC",
    b"FORM": "AIFF",
    b"caff": "CAF",
    b"#!AMR": "AMR",
}
_UNKNOWN_SIZE = 0xFFFFFFFF  # what a writer says that does not know yet


@dataclass(frozen=True)
class Sound:
    """Samples `[length]` between −1 and 1, at `rate` a second."""

    samples: Samples
    rate: int


@dataclass(frozen=True)
class _Format:
    tag: int
    channels: int
    rate: int
    bits: int

    @property
    def name(self) -> str:
        return _CODINGS.get(self.tag, f"format {self.tag:#06x}")


def read_wav(source: str | Path | bytes, name: str = "sound") -> Sound:
    """The sound of a wav file, or of a file's bytes, which errors then call `name`.

    Raises:
        DataError: it cannot be read, is not a wav file or cut off, is of another coding than PCM or floating point,
            larger than 100 MB, or holds no samples or numbers that are not finite. Names the file.
    """
    name, content = (name, source) if isinstance(source, bytes) else (str(source), read_sound_bytes(source))
    try:
        return _decoded(content)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def read_sound_bytes(path: str | Path) -> bytes:
    """The content of a sound's file.

    Raises:
        DataError: it cannot be read, or is larger than 100 MB.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{path}: larger than {MOST_BYTES:,} bytes; cut it into pieces")
    return content


def _decoded(content: bytes) -> Sound:
    form: _Format | None = None
    for kind, start, size in _chunks(content):
        if kind == b"fmt ":
            form = _format(content[start : start + size])
        elif kind == b"data":
            if form is None:
                raise ValueError("its samples come before its format; save it again as wav")
            if size == _UNKNOWN_SIZE:
                size = len(content) - start
            if start + size > len(content):
                raise ValueError(
                    f"cut off: {len(content) - start:,} of {size:,} bytes of samples are there; record or copy it again"
                )
            return Sound(_mono(content[start : start + size], form), form.rate)
    raise ValueError("a wav file without samples; record or copy it again")


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and size of each chunk."""
    if not content:
        raise ValueError("an empty file; record or copy it again")
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        kind = next((kind for start, kind in _OTHERS.items() if content.startswith(start)), None)
        found = "" if kind is None else f" but {kind}"
        raise ValueError(f"not a wav file{found}; convert the recording to wav (PCM of 16 bits, for example)")
    at = 12
    while at + 8 <= len(content):
        kind, size = content[at : at + 4], struct.unpack_from("<I", content, at + 4)[0]
        yield kind, at + 8, size
        at += 8 + size + size % 2


def _format(chunk: bytes) -> _Format:
    if len(chunk) < 16:
        raise ValueError("cut off within its format; record or copy it again")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        tag = struct.unpack_from("<H", chunk, 24)[0]
    form = _Format(tag, channels, rate, bits)
    if (tag, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise ValueError(f"{form.name} of {bits} bits; save it as PCM of 16 bits")
    if not 1 <= channels <= _MOST_CHANNELS:
        raise ValueError(f"it has {channels} channels; 1 to {_MOST_CHANNELS} are read")
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"a sample rate of {rate:,} Hz; {RATES[0]:,} to {RATES[1]:,} are read")
    return form


def _mono(data: bytes, form: _Format) -> Samples:
    frame = form.channels * form.bits // 8
    if len(data) < frame:
        raise ValueError("it holds no samples; record it again or leave it out")
    values = _values(data[: len(data) // frame * frame], form)
    if not np.isfinite(values).all():
        raise ValueError("it holds samples that are not finite")
    return values.reshape(-1, form.channels).mean(1, dtype=np.float32)


def _values(data: bytes, form: _Format) -> Samples:
    if form.tag == _FLOAT:
        return np.frombuffer(data, f"<f{form.bits // 8}").astype(np.float32)
    if form.bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if form.bits == 24:
        codes = np.zeros((len(data) // 3, 4), np.uint8)
        codes[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return codes.view("<i4")[:, 0].astype(np.float32) / np.float32(1 << 31)
    scale = np.float32(1 << (form.bits - 1))
    return np.frombuffer(data, f"<i{form.bits // 8}").astype(np.float32) / scale
