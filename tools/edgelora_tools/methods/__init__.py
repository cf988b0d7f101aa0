"""Adapter methods, one file each, against one protocol. Each has its other half in edgelora/methods/."""

from collections.abc import Mapping

from edgelora_tools.methods.base import AdapterMethod
from edgelora_tools.methods.bitfit import BITFIT
from edgelora_tools.methods.bottleneck import BOTTLENECK
from edgelora_tools.methods.dora import DORA
from edgelora_tools.methods.full import FULL
from edgelora_tools.methods.ia3 import IA3
from edgelora_tools.methods.layer_norm import LAYER_NORM
from edgelora_tools.methods.lora import LORA
from edgelora_tools.methods.lora_bias import LORA_BIAS
from edgelora_tools.methods.prefix import PREFIX_TUNING
from edgelora_tools.methods.prompt import PROMPT_TUNING

METHODS: Mapping[str, AdapterMethod] = {
    method.graphs: method
    for method in (LORA, DORA, IA3, BITFIT, LAYER_NORM, BOTTLENECK, FULL, PROMPT_TUNING, PREFIX_TUNING, LORA_BIAS)
}

__all__ = ["LORA", "METHODS", "AdapterMethod"]
