"""Adapter methods, one file each, against one protocol."""

from edgelora_tools.methods.base import AdapterMethod
from edgelora_tools.methods.lora import LORA

__all__ = ["LORA", "AdapterMethod"]
