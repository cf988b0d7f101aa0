"""onnxsim's trainer (compile_training_loop over its graph_grad), in an environment of its own."""

from __future__ import annotations

from benchmarks.job import INITIAL, Job
from benchmarks.rivals.base import Place, Preparation, Rival
from benchmarks.rivals.environments import environment, run_module
from benchmarks.rivals.plain_graph import write_plain
from edgelora.adapter import read_adapter

PACKAGES = (
    "onnxsim==0.8.1",
    "onnxruntime==1.32.0",
    "onnx==1.23.2",
    "numpy==2.4.6",
    "ml_dtypes==0.6.0",
    "protobuf==7.36.2",
    "flatbuffers==25.12.19",
    "typing_extensions==4.16.0",
    "packaging==26.4",
    "safetensors==0.8.0",
)


def model(place: Place) -> Preparation:
    """The environment, and our forward graph at the sizes of the job: its full batch, its longest text."""
    python = environment("onnxsim", PACKAGES, place.progress)
    plain = write_plain(place.bundle, place.job / INITIAL, place.folder / "onnxsim" / "forward.onnx")
    job = Job.read(place.job)
    classes = read_adapter(place.job / INITIAL).tensors["classifier.bias"].size
    sizes = [str(size) for size in (job.settings.batch_size, job.train.lengths().max(), classes)]
    fixed = place.folder / "onnxsim" / "fixed.onnx"
    run_module(
        python,
        "benchmarks.rivals.onnxsim_model",
        *(str(plain.path), *sizes, str(fixed), *plain.parameters),
        threads=place.threads,
        progress=place.progress,
        log=fixed.with_suffix(".log"),
    )
    return Preparation({"model": str(fixed), "parameters": list(plain.parameters)}, python)


ONNXSIM = Rival("onnxsim", "onnxsim 0.8.1", "benchmarks.rivals.worker_onnxsim", prepare=model)
