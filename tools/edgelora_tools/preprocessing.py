"""How raw input becomes a bundle's graph inputs, from what the source brings and what the person says."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgelora.errors import BundleError, ConversionError
from edgelora.manifest import TensorSpec
from edgelora.media.images import ImageSettings
from edgelora.tasks import TASKS
from edgelora_tools.graphs import specs
from edgelora_tools.measure_shapes import name_dimensions
from edgelora_tools.sound_features import SoundOptions, sound_preprocessing
from edgelora_tools.sources.base import Source
from edgelora_tools.sources.fixed import fixed


class InputOptions(Protocol):
    """What of the conversion's options is read here."""

    @property
    def task(self) -> str: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def image(self) -> Mapping[str, Any] | None: ...
    @property
    def sound(self) -> SoundOptions | None: ...


def preprocessing_of(
    source: Source, inputs: Sequence[TensorSpec], options: InputOptions
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest's `preprocessing`, and the files of the bundle that it names beside the source's.

    It is of pictures or sounds where the options ask for them, or the task is on these and the source says how they
    enter, or the input may hold pictures; else the source's own.

    Raises:
        ConversionError: the inputs are no pictures or sounds, or settings are missing or contradict them.
    """
    task = TASKS.get(options.task)
    takes = "" if task is None else task.inputs_name
    if options.sound is not None or (takes == "wav files" and "sound" in source.facts):
        known = SoundOptions(**source.facts.get("sound", {}))
        settings, files = sound_preprocessing(known if options.sound is None else options.sound.over(known), inputs)
        return settings.to_dict(), files
    if options.image is None and not (takes == "pictures" and len(inputs) == 1 and _channels(inputs[0])):
        return source.preprocessing(options.max_length), {}
    return image_preprocessing(inputs, {**source.facts.get("image", {}), **(options.image or {})}), {}


def at_size_of_pictures(source: Source, options: InputOptions) -> Source:
    """The source with its input's height and width settled, where pictures of one size are all that it takes.

    What follows from known sizes is known: the memory that training takes, what of a prefix is kept, faster graphs.
    """
    model = source.model.clone()
    name_dimensions(model)
    inputs = specs(model.graph.inputs)
    with contextlib.suppress(ConversionError):  # the conversion finds it again, and says so
        settings, _ = preprocessing_of(source, inputs, options)
        if settings["kind"] == "image":
            sides = inputs[0].shape[2:] if settings["layout"] == "NCHW" else inputs[0].shape[1:3]
            open_sides = [(d, size) for d, size in zip(sides, settings["size"], strict=True) if isinstance(d, str)]
            if len(dict(open_sides)) == len(set(open_sides)):  # else one name stands for sides that differ
                return fixed(source, dict(open_sides))
    return source


def image_preprocessing(inputs: Sequence[TensorSpec], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of kind "image" for a graph's one input, `[batch, channels, height, width]` or with the channels last.

    `given` are fields of `ImageSettings`; the input tells its name, its layout, and the size where that is fixed.
    """
    listed = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
    if len(inputs) != 1 or not (channels := _channels(inputs[0])):
        raise ConversionError(f"pictures need one input of rank 4 with 1 or 3 channels; the source has {listed}")
    shape = inputs[0].shape[1:]
    layout, size = ("NCHW", shape[1:]) if shape[0] == channels else ("NHWC", shape[:2])
    fixed = tuple(side for side in size if isinstance(side, int))
    wanted = tuple(given["size"]) if "size" in given else fixed
    if len(wanted) != 2:
        raise ConversionError(f"the input leaves the pictures' size open ({listed}): give --image-size HEIGHT WIDTH")
    if any(isinstance(side, int) and side != chosen for side, chosen in zip(size, wanted, strict=True)):
        raise ConversionError(f"pictures of {wanted[0]} × {wanted[1]} do not fit the input: the source has {listed}")
    settings = {"input": inputs[0].name, "layout": layout, "channels": channels, **given, "size": list(wanted)}
    try:
        return ImageSettings.read(settings, "the options for pictures").to_manifest()
    except BundleError as error:
        raise ConversionError(str(error).removesuffix("; convert the model again")) from error


def _channels(spec: TensorSpec) -> int | None:
    """1 or 3, of `[batch, channels, height, width]` or with the channels last; None if the input is no such one."""
    if len(spec.shape) != 4:
        return None
    return next((d for d in (spec.shape[1], spec.shape[3]) if isinstance(d, int) and d in (1, 3)), None)
