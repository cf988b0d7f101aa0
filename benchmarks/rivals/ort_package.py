"""onnxruntime-training's modules without its package's __init__, which imports torch for what is not used here."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import onnxruntime


def module(name: str) -> Any:
    """A module of onnxruntime.training, by its name there."""
    root = Path(onnxruntime.__file__).parent
    for package in ("training", "tools"):
        full = f"onnxruntime.{package}"
        if full not in sys.modules:
            made = types.ModuleType(full)
            made.__path__ = [str(root / package)]
            sys.modules[full] = made
            setattr(onnxruntime, package, made)
    return importlib.import_module(f"onnxruntime.training.{name}")
