"""Layer-norm tuning: the scales and biases of chosen normalizations learn (Zhao et al. 2023, arXiv:2312.11420)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgelora.config import AdapterConfig
from edgelora.methods.base import BASE_BIAS, BASE_WEIGHT, Method
from edgelora.methods.in_place import InPlace


@dataclass(frozen=True)
class LNTuningConfig(AdapterConfig):
    """Settings of layer-norm tuning (peft.LNTuningConfig): which normalizations learn; None is all of them.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "LN_TUNING"
    unwritten: ClassVar[frozenset[str]] = frozenset({"layers_to_transform", "layers_pattern"})


class LayerNormTuning(InPlace):
    """Normalizations of one's own."""

    graphs = "layer-norm"
    disk: Mapping[str, str] = {BASE_WEIGHT: "ln_tuning_layers.weight", BASE_BIAS: "ln_tuning_layers.bias"}


LAYER_NORM: Method = LayerNormTuning()
