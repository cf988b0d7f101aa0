"""Wav files for tests, in every coding, and sounds that can be told apart."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_GUID = bytes.fromhex("000000001000800000aa00389b71")


def wav_bytes(x: np.ndarray, rate: int, tag: int = 1, bits: int = 16, extensible: bool = False) -> bytes:
    """A wav file of samples `[length]` or `[length, channels]` between −1 and 1."""
    x = np.asarray(x, np.float64)
    x = x if x.ndim == 2 else x[:, None]
    channels, width = x.shape[1], bits // 8
    if tag == 3:
        data = x.astype(f"<f{width}").tobytes()
    elif bits == 8:
        data = np.clip(np.round(x * 128) + 128, 0, 255).astype(np.uint8).tobytes()
    else:
        top = 2.0 ** (bits - 1)
        codes = np.clip(np.round(x * top), -top, top - 1).astype("<i8")
        data = codes.reshape(-1, 1).view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * width, channels * width, bits)
    if extensible:
        form = struct.pack("<H", 0xFFFE) + form[2:] + struct.pack("<HHIH", 22, bits, 0, tag) + _GUID
    body = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def write_tones(folder: Path, tones: dict[str, float], count: int, rate: int = 16000, seed: int = 0) -> Path:
    """`FOLDER/label/N.wav`: half a second of noise and a tone of about the label's frequency."""
    rng = np.random.default_rng(seed)
    for label, frequency in tones.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pitch = frequency * rng.uniform(0.97, 1.03)
            x = 0.3 * np.sin(2 * np.pi * pitch * np.arange(rate // 2) / rate) + 0.05 * rng.standard_normal(rate // 2)
            (folder / label / f"{number}.wav").write_bytes(wav_bytes(x, rate))
    return folder
