"""How sound enters a bundle: its settings, and the graph of its features, made here or brought along as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgelora.errors import ConversionError
from edgelora.manifest import TensorSpec
from edgelora.media.sound import SoundSettings, setting_problems
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.log_mel import SOUND, LogMel, log_mel_graph
from edgelora_tools.normalize import onnx_errors
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.runner import open_session

FEATURES_FILE = "features.onnx"
RATE = 16_000
_SETTINGS = ("rate", "seconds", "fill", "resample", "loudness", "scale")


@dataclass(frozen=True)
class SoundOptions:
    """How a model hears: `settings` are of the window (rate, seconds, fill, resample, loudness, scale).

    `log_mel` are settings of a spectrum that the bundle computes; or `features` is an ONNX file from samples
    `[batch, samples]` to what is, times `factor` plus `offset`, the model's input. With neither, the model takes the
    samples themselves.
    """

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    log_mel: Mapping[str, Any] | None = None
    features: Path | None = None
    factor: float = 1.0
    offset: float = 0.0

    def over(self, known: SoundOptions) -> SoundOptions:
        """These, and what they leave open as `known` has it."""
        settings = {**known.settings, **self.settings}
        if self.log_mel is None and self.features is None:
            return replace(known, settings=settings)
        return replace(self, settings=settings)


def sound_preprocessing(options: SoundOptions, inputs: Sequence[TensorSpec]) -> tuple[SoundSettings, dict[str, bytes]]:
    """The manifest's preprocessing for a model with these inputs, and the bundle's file of features, if there is one.

    Raises:
        ConversionError: settings that are unknown, contradict each other or do not make the model's input.
    """
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) < 2:
        listed = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in inputs)
        raise ConversionError(f"sound is one float32 input with the batch first; this model has {listed}")
    if options.log_mel is not None and options.features is not None:
        raise ConversionError("log-mel settings and a file of features exclude each other")
    (spec,) = inputs
    given = dict(options.settings)
    if unknown := sorted(set(given) - set(_SETTINGS)):
        raise ConversionError(f"sound settings: no {', '.join(unknown)}; there are {', '.join(_SETTINGS)}")
    mel = None if options.log_mel is None else LogMel.of({"rate": given.get("rate", RATE), **options.log_mel})
    rate = _number("rate", given.pop("rate", RATE if mel is None else mel.rate))
    if mel is not None and mel.rate != rate:
        raise ConversionError(f"the sound's rate is {rate:g} Hz and the spectrum's {mel.rate:,}: they must be the same")
    seconds = given.pop("seconds", None)
    samples = _window(spec, mel) if seconds is None else round(rate * _number("seconds", seconds))
    for name in ("loudness", "scale"):
        if given.get(name) is not None:
            given[name] = _number(name, given[name])
    if isinstance(given.get("resample"), str):
        given["resample"] = given["resample"].lower() in ("true", "yes", "1")
    file = None if mel is None and options.features is None else FEATURES_FILE
    body = {"input": spec.name, "rate": int(rate), "samples": samples, "features": file, **given}
    if problems := setting_problems(body):
        raise ConversionError(f"sound settings: {'; '.join(problems)}")
    settings = SoundSettings(**body)
    if mel is not None:
        return settings, {FEATURES_FILE: _bytes(_spectrum(mel, spec, samples))}
    if options.features is not None:
        return settings, {FEATURES_FILE: _bytes(_brought(options, spec, samples))}
    if spec.shape[1:] not in ((samples,), *((d,) for d in spec.shape[1:] if isinstance(d, str))):
        raise ConversionError(
            f"the model's input {spec.name} is {list(spec.shape)}, not {samples:,} samples of sound: say --seconds, or "
            "how its features are made (--log-mel, --features)"
        )
    return settings, {}


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"sound settings: {name} must be a number, not {value!r}") from error


def _layout(spec: TensorSpec, mel: LogMel) -> tuple[bool, int | None]:
    """Whether frames stand before bands in the model's input, and how many frames there are, if that is fixed."""
    sizes = [d for d in spec.shape[1:] if d != 1]
    if len(sizes) == 2 and mel.mels in sizes:
        frames_first = sizes[1] == mel.mels
        frames = sizes[0] if frames_first else sizes[1]
        return frames_first, frames if isinstance(frames, int) else None
    raise ConversionError(
        f"the model's input {spec.name} is {list(spec.shape)}: it has no axis of {mel.mels} bands beside one of "
        "frames; say how many bands it takes (--log-mel mels=N)"
    )


def _window(spec: TensorSpec, mel: LogMel | None) -> int:
    """The samples that make the model's fixed number of frames, or that it takes itself."""
    frames = spec.shape[-1] if mel is None else _layout(spec, mel)[1]
    if not isinstance(frames, int) or (mel is None and len(spec.shape) != 2):
        raise ConversionError(f"how much sound does the model hear? Its input is {list(spec.shape)}: say seconds=S")
    if mel is None:
        return frames
    return (frames - 1) * mel.hop + (mel.n_fft % 2 if mel.center else mel.n_fft)


def _spectrum(mel: LogMel, spec: TensorSpec, samples: int) -> ir.Model:
    """The graph of a spectrum, in the shape of the model's input."""
    frames_first, frames = _layout(spec, mel)
    made = mel.frames(samples)
    if not made or frames not in (None, made):
        raise ConversionError(
            f"{samples:,} samples make {made:,} frames, and the model takes {frames or 'at least one'}: leave seconds "
            f"out, give the spectrum another hop, or center={'false' if mel.center else 'true'}"
        )
    model = log_mel_graph(mel, frames_first)
    return _shaped(model, [d if isinstance(d, int) and d in (1, mel.mels) else made for d in spec.shape[1:]])


def _brought(options: SoundOptions, spec: TensorSpec, samples: int) -> ir.Model:
    """The file's graph, with the factor and the offset, in the shape of the model's input: tried on noise."""
    path = options.features
    assert path is not None
    if not path.is_file():
        raise ConversionError(f"{path}: no such file of features")
    with onnx_errors(f"{path}: not a readable ONNX model"):
        model = ir.load(path)
    if len(model.graph.inputs) != 1 or len(model.graph.outputs) != 1:
        raise ConversionError(f"{path}: features are one output of one input, samples [batch, samples]")
    if {domain for domain in model.opset_imports if domain not in ("", "ai.onnx")} & {
        node.domain for node in model.graph.all_nodes()
    }:
        raise ConversionError(f"{path}: it has operators of other domains than ONNX's own")
    model.graph.inputs[0].name = SOUND
    op = GraphBuilder(free_names(model.graph)).op
    y = model.graph.outputs[0]
    if options.factor != 1:
        y = op.Mul(y, options.factor)
    if options.offset:
        y = op.Add(y, options.offset)
    model.graph.outputs[:] = [y]
    noise = (np.random.default_rng(0).standard_normal((1, samples)) * 0.1).astype(np.float32)
    with onnx_errors(f"{path}: it does not run on sound of shape [1, {samples}]"), open_session(model) as session:
        size = int(np.asarray(session.run(None, {SOUND: noise})[0]).size)
    sizes, open_ = [d for d in spec.shape[1:] if isinstance(d, int)], sum(isinstance(d, str) for d in spec.shape[1:])
    rest = size // max(int(np.prod(sizes)), 1)
    if open_ > 1 or int(np.prod(sizes)) * rest != size or (not open_ and rest != 1) or not rest:
        raise ConversionError(
            f"{path}: {samples:,} samples make {size:,} features, and the model's input {spec.name} is "
            f"{list(spec.shape)}: say seconds=S, as long as the model hears"
        )
    return _shaped(model, [d if isinstance(d, int) else rest for d in spec.shape[1:]])


def _shaped(model: ir.Model, sizes: Sequence[int]) -> ir.Model:
    """The same with its output as `[batch, *sizes]`."""
    op = GraphBuilder(free_names(model.graph)).op
    y = op.Reshape(model.graph.outputs[0], [-1, *sizes])
    y.type = ir.TensorType(ir.DataType.FLOAT)
    y.shape = ir.Shape(["batch", *sizes])
    model.graph.outputs[:] = [y]
    return model


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)
