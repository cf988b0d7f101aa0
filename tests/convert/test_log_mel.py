"""The graph of a spectrum against numpy's Fourier transform in float64, and settings that describe none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.errors import ConversionError
from edgelora_tools.log_mel import SOUND, LogMel, log_mel_graph
from edgelora_tools.runner import open_session

CLOSE = 2e-5


def expected(x: np.ndarray, of: LogMel) -> np.ndarray:
    """`[frames, mels]`, by the definitions."""
    x = np.pad(x.astype(np.float64), of.n_fft // 2) if of.center else x.astype(np.float64)
    count = (len(x) - of.n_fft) // of.hop + 1
    frames = np.stack([x[i * of.hop : i * of.hop + of.n_fft] for i in range(count)])
    energy = np.abs(np.fft.rfft(frames * of.window())) ** of.power
    y = energy @ of.bands().T
    logs = {"natural": np.log, "log10": np.log10, "db": lambda v: 10 * np.log10(v)}
    return y if of.log == "none" else logs[of.log](np.maximum(y, of.floor))


def made(x: np.ndarray, of: LogMel, frames_first: bool = True) -> np.ndarray:
    with open_session(log_mel_graph(of, frames_first)) as session:
        return np.asarray(session.run(None, {SOUND: x})[0])


@settings(max_examples=25)
@given(
    n_fft=st.integers(16, 90),
    hop=st.integers(3, 40),
    mels=st.integers(1, 12),
    center=st.booleans(),
    power=st.sampled_from([1.0, 2.0]),
    scale=st.sampled_from(["slaney", "htk"]),
    norm=st.sampled_from(["slaney", "none"]),
    log=st.sampled_from(["none", "natural", "log10", "db"]),
    seed=st.integers(0, 99),
)
def test_numpys_transform_agrees(n_fft, hop, mels, center, power, scale, norm, log, seed):
    of = LogMel(4000, n_fft, hop, mels, win_length=n_fft - seed % 5, center=center, power=power, scale=scale,
                norm=norm, log=log, floor=1e-4)  # fmt: skip
    x = np.random.default_rng(seed).standard_normal((3, 300)).astype(np.float32)
    y = made(x, of)
    wanted = np.stack([expected(row, of) for row in x])
    assert y.shape == wanted.shape == (3, of.frames(300), mels)
    near = CLOSE * np.abs(wanted).max() + (1e-4 if log != "none" else 0)
    np.testing.assert_allclose(y, wanted, rtol=CLOSE, atol=near)
    np.testing.assert_array_equal(made(x, of, frames_first=False), y.transpose(0, 2, 1))


def test_speech_settings():
    """25 ms every 10 ms: a tone is in its band, silence at the floor, and sound ten times as loud 20 dB up."""
    of = LogMel(log="db", floor=1e-10)
    t = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    y = made(np.stack([tone, 0.1 * tone, 0 * tone]), of)
    assert y.shape == (3, 101, 40)
    bands = of.bands()
    band = int(bands[:, round(1000 / 40)].argmax())
    assert (y[0, 5:-5].argmax(1) == band).all()
    np.testing.assert_allclose(y[0, 5:-5, band] - y[1, 5:-5, band], 20, atol=1e-3)
    assert (y[2] == -100).all()


def test_bands_of_equal_area_and_height():
    wide = LogMel(n_fft=4096, mels=20)
    np.testing.assert_allclose(wide.bands().sum(1) * 16000 / 4096, 1, rtol=0.01)
    tall = LogMel(n_fft=4096, mels=20, norm="none", scale="htk", fmin=50, fmax=7000).bands()
    assert ((tall.max(1) > 0.9) & (tall.max(1) <= 1)).all()
    frequencies = np.arange(2049) * 16000 / 4096
    assert not tall[:, (frequencies < 50) | (frequencies > 7000)].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_mels": 3}, "no n_mels; there are rate, n_fft"),
        ({"mels": "many"}, "mels must be a whole number, not 'many'"),
        ({"center": "perhaps"}, "center must be true or false"),
        ({"hop": 0, "log": "e"}, "hop must be at least 1; log must be one of"),
        ({"fmin": 9000}, "fmin < fmax"),
        ({"win_length": 500}, "win_length"),
    ],
)
def test_settings_that_describe_no_spectrum(given, message):
    with pytest.raises(ConversionError, match=message):
        LogMel.of(given)


def test_settings_as_text():
    assert LogMel.of({"n_fft": "512", "center": "false", "fmax": "7600", "log": "db"}) == LogMel(
        n_fft=512, center=False, fmax=7600.0, log="db"
    )


def test_the_graph_is_standard_onnx():
    model = log_mel_graph(LogMel(), frames_first=True)
    assert {node.domain for node in model.graph} <= {"", "ai.onnx"}
    assert len(ir.to_proto(model).SerializeToString()) < 1_000_000
