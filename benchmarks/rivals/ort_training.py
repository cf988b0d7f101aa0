"""onnxruntime-training 1.19.2, the last release, in an environment of its own: artifacts from our forward graph."""

from __future__ import annotations

from benchmarks.rivals.base import Place, Preparation, Rival
from benchmarks.rivals.environments import environment, run_module
from benchmarks.rivals.plain_graph import write_plain

PACKAGES = (
    "onnxruntime-training==1.19.2",
    "numpy==1.26.4",
    "onnx==1.16.2",
    "protobuf==7.36.2",
    "flatbuffers==25.12.19",
    "packaging==26.4",
    "safetensors==0.8.0",
)


def artifacts(place: Place) -> Preparation:
    """The environment, and what its own generate_artifacts makes of the graph with the adapter as initializers."""
    python = environment("ort-training", PACKAGES, place.progress)
    folder = place.folder / "ort-training"
    if not (folder / "checkpoint").exists():
        plain = write_plain(place.bundle, place.job / "initial", folder / "forward.onnx")
        run_module(
            python,
            "benchmarks.rivals.ort_artifacts",
            *(str(plain.path), str(folder), *plain.parameters),
            threads=place.threads,
            progress=place.progress,
            log=folder / "artifacts.log",
        )
    return Preparation({"artifacts": str(folder)}, python)


ORT_TRAINING = Rival(
    "ort-training", "onnxruntime-training 1.19.2", "benchmarks.rivals.worker_ort_training", prepare=artifacts
)
