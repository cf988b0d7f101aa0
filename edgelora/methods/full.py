"""Full fine-tuning of chosen linear modules: W and b themselves learn, dW = xᵀ·dY. What the others are compared with.

PEFT has no such method: `peft_type` is our own. The weight is `[in, out]` in memory, `[out, in]` on disk as torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgelora.config import AdapterConfig
from edgelora.methods.base import BASE_BIAS, BASE_WEIGHT, Method
from edgelora.methods.in_place import InPlace


@dataclass(frozen=True)
class FullConfig(AdapterConfig):
    """Settings of full fine-tuning: which linear modules learn; None is all that the bundle has graphs for.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "FULL"
    in_peft: ClassVar[bool] = False


class Full(InPlace):
    """Linear modules of one's own."""

    graphs = "full"
    disk: Mapping[str, str] = {BASE_WEIGHT: "weight", BASE_BIAS: "bias"}


FULL: Method = Full()
