"""onnxsim's trainer (compile_training_loop over its graph_grad), in an environment of its own."""

from __future__ import annotations

from benchmarks.rivals.base import Place, Preparation, Rival, environment
from benchmarks.rivals.plain_graph import write_plain

PACKAGES = ("onnxsim==0.8.1", "onnxruntime==1.32.0", "onnx==1.23.2", "safetensors")


def model(place: Place) -> Preparation:
    """The environment and our forward graph."""
    python = environment("onnxsim", PACKAGES, place.progress)
    plain = write_plain(place.bundle, place.job / "initial", place.folder / "onnxsim" / "forward.onnx")
    return Preparation({"model": str(plain.path), "parameters": list(plain.parameters)}, python)


ONNXSIM = Rival("onnxsim", "onnxsim 0.8.1", "benchmarks.rivals.worker_onnxsim", prepare=model)
