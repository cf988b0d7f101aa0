"""Settings of adapters with PEFT's names, defaults and pattern semantics; to and from `adapter_config.json`."""

from edgelora.config.adapter import AdapterConfig, Patterns
from edgelora.config.checks import (
    MAX_RANK,
    alpha_problems,
    dropout_problems,
    is_number,
    pattern_problems,
    rank_problems,
)
from edgelora.config.lora import BIASES, LoraConfig, unscaled

__all__ = [
    "BIASES",
    "MAX_RANK",
    "AdapterConfig",
    "LoraConfig",
    "Patterns",
    "alpha_problems",
    "dropout_problems",
    "is_number",
    "pattern_problems",
    "rank_problems",
    "unscaled",
]
