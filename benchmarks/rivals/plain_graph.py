"""Our inference graph for other trainers: one file of standard ONNX, the adapter's tensors as its initializers.

The graph's input B' = s·B becomes an initializer B and a product with s, so that an optimizer sees PEFT's B.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgelora.adapter import read_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig

SCALED = ".unscaled"


@dataclass(frozen=True)
class Plain:
    """The file, and the names of the initializers that are trained."""

    path: Path
    parameters: tuple[str, ...]


def write_plain(bundle: Path, adapter: Path, destination: Path) -> Plain:
    """Write the bundle's inference graph, with the values of this adapter."""
    model = plain_model(bundle, adapter)
    destination.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, destination)
    return Plain(destination, parameters(adapter, bundle))


def parameters(adapter: Path, bundle: Path) -> tuple[str, ...]:
    """Names of the trained initializers, in order."""
    tensors = read_adapter(adapter).tensors
    return tuple(sorted(f"{n}{SCALED}" if n.endswith(".lora_B") else n for n in tensors))


def plain_model(bundle: Path, adapter: Path) -> onnx.ModelProto:
    """The model with every tensor in it."""
    manifest = Bundle.open(bundle).manifest
    model = onnx.load(bundle / manifest.forward)
    found = read_adapter(adapter)
    assert isinstance(found.config, LoraConfig)
    kept = [value for value in model.graph.input if value.name not in found.tensors]
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.extend(kept)
    for name, tensor in sorted(found.tensors.items()):
        stored, value = name, np.ascontiguousarray(tensor, np.float32)
        if name.endswith(".lora_B"):
            stored, scale = f"{name}{SCALED}", f"{name}.scale"
            factor = np.array(found.config.scale(name.removesuffix(".lora_B")), np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(factor, scale))
            model.graph.node.insert(0, onnx.helper.make_node("Mul", [stored, scale], [name], f"{name}.scaling"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, stored))
    return model
