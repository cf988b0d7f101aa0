"""Spectra of sound as a graph of a bundle: frames, window and Fourier transform in one convolution, then mel bands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import log
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgelora.errors import ConversionError
from edgelora_tools.builder import GraphBuilder

OPSET = 21
SOUND, BATCH = "sound", "batch"
LOGS = ("none", "natural", "log10", "db")
SCALES = ("slaney", "htk")
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class LogMel:
    """How a spectrum is made, in the words and with the defaults of librosa and torchaudio.

    Frames of `win_length` samples (default: n_fft) under a periodic Hann window, every `hop` samples; with `center`
    the first is centred on the first sample, and silence stands before and behind the sound. `power` 2 takes squared
    magnitudes. `mels` triangles from `fmin` to `fmax` (default: half the rate), equally spaced on the mel scale
    `scale` ("slaney" or "htk"), of equal area with `norm` "slaney" or of equal height with "none". The logarithm `log`
    ("natural", "log10", "db" for 10·log10, or "none") is taken of max(x, floor).
    """

    rate: int = 16_000
    n_fft: int = 400
    hop: int = 160
    mels: int = 40
    win_length: int | None = None
    fmin: float = 0.0
    fmax: float | None = None
    center: bool = True
    power: float = 2.0
    scale: str = "slaney"
    norm: str = "slaney"
    log: str = "natural"
    floor: float = 1e-6

    def __post_init__(self) -> None:
        """Raises ConversionError for settings that describe no spectrum."""
        window, top = self.win_length or self.n_fft, self.fmax or self.rate / 2
        problems = [
            *(f"{name} must be at least 1" for name in ("rate", "hop", "mels") if getattr(self, name) < 1),
            *(["n_fft must be from 2 to 65,536"] if not 2 <= self.n_fft <= 1 << 16 else []),
            *(["win_length must be from 1 to n_fft"] if not 1 <= window <= self.n_fft else []),
            *(["0 ≤ fmin < fmax ≤ rate/2 does not hold"] if not 0 <= self.fmin < top <= self.rate / 2 else []),
            *(["power must be 1 or 2"] if self.power not in (1, 2) else []),
            *([f"log must be one of {', '.join(LOGS)}"] if self.log not in LOGS else []),
            *([f"scale must be one of {', '.join(SCALES)}"] if self.scale not in SCALES else []),
            *(["norm must be slaney or none"] if self.norm not in ("slaney", "none") else []),
            *(["floor must be above 0"] if not self.floor > 0 else []),
        ]
        if problems:
            raise ConversionError(f"log-mel settings: {'; '.join(problems)}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LogMel:
        """From settings by name, as text or as what they are.

        Raises:
            ConversionError: an unknown name, or a value of another kind; those that there are are named.
        """
        known = {field.name: field.type for field in fields(cls)}
        if unknown := sorted(set(given) - set(known)):
            raise ConversionError(f"log-mel settings: no {', '.join(unknown)}; there are {', '.join(known)}")
        return replace(cls(), **{name: _value(name, str(known[name]), value) for name, value in given.items()})

    def frames(self, samples: int) -> int:
        """How many frames so many samples make."""
        room = samples + 2 * (self.n_fft // 2) if self.center else samples
        return max((room - self.n_fft) // self.hop + 1, 0)

    def window(self) -> Doubles:
        """The window `[n_fft]`, shorter ones in the middle."""
        size = self.win_length or self.n_fft
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        before = (self.n_fft - size) // 2
        return np.pad(hann, (before, self.n_fft - size - before))

    def bands(self) -> Doubles:
        """The triangles over the frequencies of the transform, `[mels, n_fft//2 + 1]`."""
        low, high = (_to_mel(f, self.scale) for f in (self.fmin, self.fmax or self.rate / 2))
        corners = _to_hertz(np.linspace(low, high, self.mels + 2), self.scale)
        frequencies = np.arange(self.n_fft // 2 + 1) * self.rate / self.n_fft
        left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
        rising, falling = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
        triangles = np.maximum(0, np.minimum(rising, falling))
        return triangles * 2 / (right - left) if self.norm == "slaney" else triangles


def log_mel_graph(settings: LogMel, frames_first: bool) -> ir.Model:
    """The graph from `sound` `[batch, samples]` to `[batch, frames, mels]`, or else `[batch, mels, frames]`.

    X_k = Σ_n w_n·x_n·e^(−2πikn/N) for every frame is a convolution with 2·(N/2 + 1) kernels w_n·cos and −w_n·sin.
    """
    builder = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="features"))
    op = builder.op
    sound = builder.input(SOUND, ir.DataType.FLOAT, [BATCH, "samples"])
    x = op.Unsqueeze(sound, [1])
    if settings.center:
        half = settings.n_fft // 2
        x = op.Pad(x, [0, 0, half, 0, 0, half])
    bins = settings.n_fft // 2 + 1
    angles = 2 * np.pi * (np.outer(np.arange(bins), np.arange(settings.n_fft)) % settings.n_fft) / settings.n_fft
    kernels = np.concatenate([np.cos(angles), -np.sin(angles)]) * settings.window()
    spectrum = op.Conv(x, _weights(builder, kernels[:, None], "kernels"), strides=[settings.hop])
    squares = op.Mul(spectrum, spectrum)
    real, imaginary = op.Split(squares, num_outputs=2, axis=1, _outputs=2)
    energy = op.Add(real, imaginary)
    if settings.power == 1:
        energy = op.Sqrt(energy)
    y = op.MatMul(_weights(builder, settings.bands(), "bands"), energy)
    if settings.log != "none":
        y = op.Log(op.Max(y, settings.floor))
        factor = {"natural": 1.0, "log10": 1 / log(10), "db": 10 / log(10)}[settings.log]
        y = y if factor == 1 else op.Mul(y, factor)
    if frames_first:
        y = op.Transpose(y, perm=[0, 2, 1])
    y.name = "features"
    builder.graph.outputs.append(y)
    return ir.Model(builder.graph, ir_version=10)


def _weights(builder: GraphBuilder, values: Doubles, name: str) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(values, np.float32), name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    builder.graph.register_initializer(value)
    return value


def _value(name: str, kind: str, value: Any) -> Any:
    """A setting in its type; from text too."""
    try:
        if kind == "bool":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]
        if kind == "str":
            return str(value)
        return int(value) if kind.startswith("int") else float(value)
    except (KeyError, TypeError, ValueError) as error:
        wanted = "true or false" if kind == "bool" else "a whole number" if kind.startswith("int") else "a number"
        raise ConversionError(f"log-mel settings: {name} must be {wanted}, not {value!r}") from error


# Slaney's scale (Auditory Toolbox, 1998) is linear up to 1,000 Hz and logarithmic above; HTK's is logarithmic.
_LINEAR, _KNEE, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _to_mel(hertz: float, scale: str) -> float:
    if scale == "htk":
        return float(2595 * np.log10(1 + hertz / 700))
    knee = _KNEE / _LINEAR
    return hertz / _LINEAR if hertz < _KNEE else float(knee + np.log(hertz / _KNEE) / _STEP)


def _to_hertz(mels: Doubles, scale: str) -> Doubles:
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    knee = _KNEE / _LINEAR
    return np.where(mels < knee, mels * _LINEAR, _KNEE * np.exp(_STEP * (mels - knee)))
