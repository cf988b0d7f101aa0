"""onnxruntime-training 1.19.2, the last release, in an environment of its own: artifacts from our forward graph."""

from __future__ import annotations

from benchmarks.rivals.base import Place, Preparation, Rival, environment, run_module
from benchmarks.rivals.plain_graph import write_plain

PACKAGES = ("onnxruntime-training==1.19.2", "numpy==1.26.4", "onnx==1.16.2", "cerberus", "h5py", "safetensors")


def artifacts(place: Place) -> Preparation:
    """The environment, and what its own generate_artifacts makes of the graph with the adapter as initializers."""
    python = environment("ort-training", PACKAGES, place.progress)
    folder = place.folder / "ort-training"
    if not (folder / "checkpoint").exists():
        plain = write_plain(place.bundle, place.job / "initial", folder / "forward.onnx")
        module = "benchmarks.rivals.ort_artifacts"
        run_module(python, module, str(plain.path), str(folder), *plain.parameters, threads=place.threads)
    return Preparation({"artifacts": str(folder)}, python)


ORT_TRAINING = Rival(
    "ort-training", "onnxruntime-training 1.19.2", "benchmarks.rivals.worker_ort_training", prepare=artifacts
)
