"""Adapter methods, one file each, against one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelora.config import AdapterConfig, LoraConfig
from edgelora.errors import AdapterError
from edgelora.methods.base import UNKNOWN, BaseValues, Floats, Method, Shape, Tensors, no_graphs, no_prefix, split_name
from edgelora.methods.bitfit import BITFIT, BeftConfig
from edgelora.methods.bottleneck import BOTTLENECK, BottleneckConfig
from edgelora.methods.dora import DORA
from edgelora.methods.full import FULL, FullConfig
from edgelora.methods.ia3 import IA3, IA3Config
from edgelora.methods.layer_norm import LAYER_NORM, LNTuningConfig
from edgelora.methods.lora import LORA
from edgelora.methods.lora_bias import LORA_BIAS
from edgelora.methods.pissa import PISSA, as_lora, beginnings
from edgelora.methods.prefix import PREFIX_TUNING, PrefixTuningConfig
from edgelora.methods.prompt import PROMPT_TUNING, PromptTuningConfig
from edgelora.methods.vera import VERA, VeraConfig

METHODS: tuple[Method, ...] = (
    LORA,
    DORA,
    VERA,
    IA3,
    BITFIT,
    LAYER_NORM,
    BOTTLENECK,
    FULL,
    PROMPT_TUNING,
    PREFIX_TUNING,
    LORA_BIAS,
)
_BY_CONFIG: Mapping[type[AdapterConfig], Method] = {
    LoraConfig: LORA,
    VeraConfig: VERA,
    IA3Config: IA3,
    BeftConfig: BITFIT,
    LNTuningConfig: LAYER_NORM,
    BottleneckConfig: BOTTLENECK,
    FullConfig: FULL,
    PromptTuningConfig: PROMPT_TUNING,
    PrefixTuningConfig: PREFIX_TUNING,
}
_BY_TYPE: Mapping[str, type[AdapterConfig]] = {config.peft_type: config for config in _BY_CONFIG}


def method_of(config: AdapterConfig) -> Method:
    """The method whose settings these are."""
    if isinstance(config, LoraConfig) and config.is_pissa:
        return PISSA
    if isinstance(config, LoraConfig) and config.bias != "none":
        return LORA_BIAS
    return DORA if isinstance(config, LoraConfig) and config.use_dora else _BY_CONFIG[type(config)]


def config_from_peft(body: Mapping[str, Any], where: str) -> AdapterConfig:
    """PEFT's `adapter_config.json` as the settings of its method; `where` names the file in errors.

    Raises:
        AdapterError: a method that this runtime does not have, or a setting that cannot be represented.
    """
    kind = body.get("peft_type")
    if not isinstance(kind, str) or kind not in _BY_TYPE:
        raise AdapterError(f"{where}: peft_type is {kind!r}; this runtime loads {', '.join(sorted(_BY_TYPE))}")
    return _BY_TYPE[kind].from_peft(body, where)


__all__ = [
    "LORA",
    "METHODS",
    "PISSA",
    "UNKNOWN",
    "BaseValues",
    "BeftConfig",
    "BottleneckConfig",
    "Floats",
    "FullConfig",
    "IA3Config",
    "LNTuningConfig",
    "Method",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "Shape",
    "Tensors",
    "VeraConfig",
    "as_lora",
    "beginnings",
    "config_from_peft",
    "method_of",
    "no_graphs",
    "no_prefix",
    "split_name",
]
