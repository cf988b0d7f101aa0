"""What each TFLite operator is in ONNX. Importing the package fills the registry."""

from edgelora_tools.sources.tflite.operators import (
    activations,
    codes,
    convolution,
    elementwise,
    pooling,
    products,
    reductions,
    resize,
    shapes,
)
from edgelora_tools.sources.tflite.operators.registry import TRANSLATIONS

__all__ = [
    "TRANSLATIONS",
    "activations",
    "codes",
    "convolution",
    "elementwise",
    "pooling",
    "products",
    "reductions",
    "resize",
    "shapes",
]
