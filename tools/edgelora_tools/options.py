"""What a person chooses at conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelora.manifest import DetectorSettings
from edgelora_tools.sound_features import SoundOptions


@dataclass(frozen=True)
class ConvertOptions:
    """Settings of a conversion.

    `target_modules` and `exclude_modules` follow PEFT; they decide which points the bundle's graphs can
    adapt. `output` names the source output that the task reads, where several fit. For each number in
    `train_last` there are also graphs for adapters in that many last layers alone, after a frozen prefix.
    `quantize` is the precision of the frozen weights (`int8` or `int4`), calibrated on the samples of the file
    `calibration`, or on random inputs. `placement` "skip" puts adapters from every layer's input to the last
    hidden state, instead of into the modules (skips.py). `methods` names the adapter methods, beside LoRA, that get
    graphs of their own. `unpad` leaves padding out of the training graphs' row-wise operators where that changes no
    result. Memory is weighed at steps of `batch_size` samples, and `length` along the other dynamic dimensions; at
    these, training must fit into `ram` bytes, which are its default budget. `image` are fields of
    `edgelora.media.images.ImageSettings` for a model that takes pictures. `detector` says what the source's outputs
    mean where object detection keeps them; without it an adapter has a head of its own.
    `sound` says how a model hears.
    """

    task: str = "sequence-classification"
    pooling: str = "mean"
    output: str | None = None
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    name: str | None = None
    max_length: int | None = None
    unpad: bool = True
    overwrite: bool = False
    train_last: tuple[int, ...] = ()
    quantize: str | None = None
    calibration: Path | None = None
    placement: str = "modules"
    batch_size: int = 32
    length: int = 128
    methods: tuple[str, ...] = ()
    ram: int | None = None
    image: Mapping[str, Any] | None = None
    sound: SoundOptions | None = None
    detector: DetectorSettings | None = None

    @property
    def head_task(self) -> str:
        """The task whose head the graphs have: a detector's own maps are returned as they are."""
        return self.task if self.detector is None else "feature-extraction"
