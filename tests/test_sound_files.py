"""Wav files are read as they were written, in every coding; what is no wav file is named."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.errors import DataError
from edgelora.media.resampling import resample
from edgelora.media.wav import read_wav
from tests.sounds import wav_bytes

CODINGS = {(1, 8): 2.0**-7, (1, 16): 2.0**-15, (1, 24): 2.0**-23, (1, 32): 2.0**-23, (3, 32): 0.0, (3, 64): 2.0**-24}


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("tag", "bits"), CODINGS)
@given(
    length=st.integers(1, 50), channels=st.integers(1, 3), rate=st.sampled_from([8000, 44100]), seed=st.integers(0, 99)
)
def test_what_is_written_is_read(tag: int, bits: int, extensible: bool, length: int, channels: int, rate: int, seed):
    x = np.random.default_rng(seed).uniform(-1, 1, (length, channels)).astype(np.float32)
    sound = read_wav(wav_bytes(x, rate, tag, bits, extensible))
    assert sound.rate == rate
    assert sound.samples.dtype == np.float32
    np.testing.assert_allclose(sound.samples, x.mean(1), rtol=0, atol=CODINGS[tag, bits] + 1e-7)


def test_the_standard_librarys_files(tmp_path: Path):
    codes = np.array([0, 1, -1, 32767, -32768], "<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(codes.tobytes())
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav").samples, codes / np.float32(32768))


def test_chunks_beside_the_samples_are_passed_over():
    x = np.linspace(-0.5, 0.5, 9, dtype=np.float32)
    plain = wav_bytes(x, 16000)
    listed = b"LIST" + struct.pack("<I", 5) + b"abcde\0"
    np.testing.assert_array_equal(read_wav(plain[:36] + listed + plain[36:]).samples, read_wav(plain).samples)


def test_a_stream_of_unknown_size_is_read_to_its_end():
    content = bytearray(wav_bytes(np.full(4, 0.25, np.float32), 8000))
    content[40:44] = b"\xff" * 4
    assert len(read_wav(bytes(content)).samples) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file; record"),
        (b"hello", "not a wav file; convert"),
        (b"ID3\4 an mp3 file", "not a wav file but MP3; convert"),
        (b"\xff\xfb\x90\x64 an mp3 file", "not a wav file but MP3; convert"),
        (b"OggS an Ogg file", "not a wav file but Ogg; convert"),
        (wav_bytes(np.ones(8, np.float32), 8000)[:-3], "cut off: 13 of 16 bytes"),
        (wav_bytes(np.ones(8, np.float32), 8000)[:36], "without samples"),
        (wav_bytes(np.zeros(0, np.float32), 8000), "no samples"),
        (wav_bytes(np.ones(8, np.float32), 500), "500 Hz"),
        (wav_bytes(np.array([0, np.nan], np.float32), 8000, 3, 32), "not finite"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 2, 1, 8000, 0, 0, 4), "ADPCM of 4 bits"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 0x55, 1, 8000, 0, 0, 0), "MP3 of 0 bits; save"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 9, 1, 8000, 0, 0, 4), "format 0x0009 of 4 bits"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 0, 8000, 0, 0, 16), "0 channels"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0\0\0\0\0", "before its format"),
    ],
)
def test_what_is_no_sound_is_named(content: bytes, message: str, tmp_path: Path):
    if b"fmt " in content and b"data" not in content and "without" not in message:
        content += b"data\4\0\0\0\0\0\0\0"
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.wav: .*{message}"):
        read_wav(path)


@given(st.binary(max_size=80), st.integers(0, 60))
def test_damaged_bytes_are_read_or_refused(noise: bytes, at: int):
    content = bytearray(wav_bytes(np.linspace(-1, 1, 10, dtype=np.float32), 8000))
    content[at : at + len(noise)] = noise
    try:
        assert np.isfinite(read_wav(bytes(content)).samples).all()
    except DataError as error:
        assert str(error).startswith("sound: ")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.wav: cannot be read \(No such file"):
        read_wav(tmp_path / "none.wav")


RATES = [(8000, 16000), (44100, 16000), (48000, 16000), (16000, 8000), (22050, 16000), (16000, 44100)]


@pytest.mark.parametrize(("rate", "to"), RATES)
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.8])
def test_a_tone_is_the_tone_at_the_new_rate(rate: int, to: int, part: float):
    """Exactly: sin(2πft + φ) at the times n/to, away from the ends."""
    frequency = part * min(rate, to) / 2
    x = np.sin(2 * np.pi * frequency * np.arange(rate // 4) / rate + 0.7).astype(np.float32)
    y = resample(x, rate, to)
    assert len(y) == -(-len(x) * to // rate)
    wanted = np.sin(2 * np.pi * frequency * np.arange(len(y)) / to + 0.7)
    inner = slice(len(y) // 5, -len(y) // 5)
    np.testing.assert_allclose(y[inner], wanted[inner], atol=1e-3)


@pytest.mark.parametrize(("rate", "to"), [(44100, 16000), (48000, 16000), (16000, 8000)])
def test_what_the_new_rate_cannot_hold_is_silenced(rate: int, to: int):
    x = np.sin(2 * np.pi * 1.05 * to / 2 * np.arange(rate // 4) / rate).astype(np.float32)
    y = resample(x, rate, to)
    assert np.abs(y[len(y) // 5 : -len(y) // 5]).max() < 1e-3


def test_long_sounds_come_out_as_their_parts_do():
    x = np.random.default_rng(0).standard_normal(90_000).astype(np.float32)
    y = resample(x, 8000, 16000)
    np.testing.assert_allclose(y[100_000:100_200], resample(x[49_000:52_000], 8000, 16000)[2000:2200], atol=1e-5)
