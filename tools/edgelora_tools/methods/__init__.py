"""Adapter methods, one file each, against one protocol."""

from edgelora_tools.methods.base import METHODS, AdapterMethod
from edgelora_tools.methods.lora import LORA

__all__ = ["LORA", "METHODS", "AdapterMethod"]
