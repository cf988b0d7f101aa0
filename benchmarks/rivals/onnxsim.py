"""onnxsim's trainer (compile_training_loop over its graph_grad), in an environment of its own."""

from __future__ import annotations

from benchmarks.job import INITIAL, Job
from benchmarks.rivals.base import Place, Preparation, Rival, environment, run_module
from benchmarks.rivals.plain_graph import write_plain
from edgelora.adapter import read_adapter

PACKAGES = ("onnxsim==0.8.1", "onnxruntime==1.32.0", "onnx==1.23.2", "safetensors")


def model(place: Place) -> Preparation:
    """The environment, and our forward graph at the sizes of the job: its full batch, its longest text."""
    python = environment("onnxsim", PACKAGES, place.progress)
    plain = write_plain(place.bundle, place.job / INITIAL, place.folder / "onnxsim" / "forward.onnx")
    job = Job.read(place.job)
    classes = read_adapter(place.job / INITIAL).tensors["classifier.bias"].size
    sizes = [str(size) for size in (job.settings.batch_size, job.train.lengths().max(), classes)]
    fixed = place.folder / "onnxsim" / "fixed.onnx"
    module = "benchmarks.rivals.onnxsim_model"
    run_module(python, module, str(plain.path), *sizes, str(fixed), *plain.parameters, threads=place.threads)
    return Preparation({"model": str(fixed), "parameters": list(plain.parameters)}, python)


ONNXSIM = Rival("onnxsim", "onnxsim 0.8.1", "benchmarks.rivals.worker_onnxsim", prepare=model)
