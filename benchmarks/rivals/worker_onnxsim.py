"""The same training run by onnxsim's compile_training_loop, in its own environment.

Every batch is padded to the job's longest text and its full size: the trainer's shapes are fixed. Its gradients
are not read. Options: `model`, what onnxsim_model wrote; `parameters`, the initializers that are trained;
`learning_rate` (else the job's).
"""

from __future__ import annotations

import importlib
import platform
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from benchmarks.job import INITIAL, Job, Recorder, Texts, worker_arguments, worker_options
from benchmarks.rivals.onnxsim_model import INPUTS, LOSS, TARGETS
from benchmarks.rivals.peft_tensors import graph_tensors

onnxsim: Any = importlib.import_module("onnxsim")  # of that environment alone: no types
graph_grad: Any = importlib.import_module("onnxsim.graph_grad")
SCALED = ".unscaled"
# The trainer walks back through the embeddings and the mask as well, which nothing trained reaches, and has no rules
# for some of what stands there. In this model these operators stand nowhere else: no gradient is theirs.
UNTRAINED = ("And", "Cast", "Gather", "GatherND", "GreaterOrEqual", "Max")
Feeds = dict[str, NDArray[Any]]


def main() -> None:
    folder, destination, started = worker_arguments()
    options, job = worker_options(), Job.read(folder)
    record = Recorder("onnxsim", job, started)
    model = onnx.load(options["model"])
    start = graph_tensors(folder / INITIAL)
    for tensor in model.graph.initializer:
        if tensor.name in options["parameters"]:
            value = np.ascontiguousarray(start[tensor.name.removesuffix(SCALED)])
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    length = next(v.type.tensor_type.shape.dim[1].dim_value for v in model.graph.input if v.name in INPUTS)
    classes = next(v.type.tensor_type.shape.dim[1].dim_value for v in model.graph.input if v.name == TARGETS)
    taken = {value.name for value in model.graph.input}
    for operator in UNTRAINED:
        graph_grad.register_gradient(operator, no_gradient, override=True)
    loop = onnxsim.compile_training_loop(model, LOSS, options["parameters"])
    rate = options.get("learning_rate", job.settings.learning_rate)
    size = job.settings.batch_size

    def feeds(texts: Texts, rows: NDArray[np.int64]) -> Feeds:
        """The batch padded to the fixed sizes; the targets of rows that are not there are zero."""
        found: Feeds = {}
        for name, array in texts.feeds(rows).items():
            padded = np.full((size, length), texts.pad_id if name == "input_ids" else 0, np.int64)
            padded[: len(rows), : array.shape[1]] = array
            if name == "attention_mask":
                padded[len(rows) :, 0] = 1  # a row of padding alone has no mean
            found[name] = padded
        targets = np.zeros((size, classes), np.float32)
        targets[np.arange(len(rows)), texts.labels[rows]] = 1 / len(rows)
        return {name: value for name, value in (found | {TARGETS: targets}).items() if name in taken}

    snapshots: list[Any] = []
    for step, rows in enumerate(job.batches()):
        record.begin_step()
        record.end_step(loop(feeds(job.train, rows), rate * max(0.0, 1.0 - step / job.total_steps)))
        if job.ends_epoch(step):
            snapshots.append(loop.export())
        record.next_turn()
    record.end_training()
    accuracies = [accuracy(snapshot, job, feeds, size, length) for snapshot in snapshots]
    versions = {"onnxsim": str(onnxsim.__version__), "its onnxruntime": onnxruntime.__version__}
    record.write(destination, accuracies, versions | {"its python": platform.python_version()})


def no_gradient(context: Any, node: Any, gradient: str) -> list[str | None]:
    """A rule of graph_grad's: none of the inputs has a gradient."""
    return [None] * len(node.input)


def accuracy(model: onnx.ModelProto, job: Job, feeds: Any, size: int, length: int) -> float:
    """Accuracy of the exported model on the test texts that fit its fixed length, in batches of its fixed size."""
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.get_outputs()[0].name
    (fitting,) = np.nonzero(job.test.lengths() <= length)
    hits = 0
    for start in range(0, len(fitting), size):
        rows = fitting[start : start + size]
        (made,) = session.run([logits], feeds(job.test, rows))
        hits += int((made[: len(rows)].argmax(1) == job.test.labels[rows]).sum())
    return hits / len(fitting)


if __name__ == "__main__":
    main()
