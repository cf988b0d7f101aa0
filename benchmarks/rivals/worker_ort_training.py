"""The same training run by onnxruntime-training, in its own environment.

Options: `artifacts`, the folder that ort_artifacts filled; `learning_rate` (else the job's).
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.job import INITIAL, PROBE, Job, Recorder, worker_arguments, worker_options
from benchmarks.rivals.ort_package import module
from benchmarks.rivals.peft_tensors import graph_tensors

SCALED = ".unscaled"


def main() -> None:
    folder, destination, started = worker_arguments()
    options, job = worker_options(), Job.read(folder)
    record = Recorder("onnxruntime-training", job, started)
    api, artifacts = module("api"), Path(options["artifacts"])
    settings: Any = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = job.settings.threads
    state = api.CheckpointState.load_checkpoint(artifacts / "checkpoint")
    model = api.Module(
        artifacts / "training_model.onnx", state, artifacts / "eval_model.onnx", session_options=settings
    )
    optimizer = api.Optimizer(artifacts / "optimizer_model.onnx", model)
    trained = {name: parameter for name, parameter in state.parameters if parameter.requires_grad}
    put(trained, graph_tensors(folder / INITIAL))
    rate = options.get("learning_rate", job.settings.learning_rate)
    snapshots: list[dict[str, NDArray[np.float32]]] = []
    batches, names = job.batches(), ["input_ids", "attention_mask", "token_type_ids"]

    def feeds(texts: Any, rows: Any) -> list[Any]:
        by_name = {**texts.feeds(rows), "labels": texts.labels[rows]}
        return [by_name[name if name in names else "labels"] for name in model.input_names()]

    model.train()
    for step, rows in enumerate(batches):
        record.begin_step()
        optimizer.set_learning_rate(rate * max(0.0, 1.0 - step / job.total_steps))
        loss, _ = model(*feeds(job.train, rows))
        if step == 0:
            first = {name: np.array(parameter.grad) for name, parameter in trained.items()}
            record.keep_gradients(INITIAL, disk(first))
        optimizer.step()
        model.lazy_reset_grad()
        record.end_step(float(loss))
        if job.ends_epoch(step):
            snapshots.append({n.removesuffix(SCALED): np.array(p.data) for n, p in trained.items()})
        record.next_turn()
    record.end_training()
    put(trained, graph_tensors(folder / PROBE))
    model(*feeds(job.train, batches[0]))
    record.keep_gradients(PROBE, disk({name: np.array(parameter.grad) for name, parameter in trained.items()}))
    model.eval()
    accuracies: list[float] = []
    for snapshot in snapshots:
        put(trained, snapshot)
        hits = 0
        for rows in job.test.evaluation_batches():
            _, logits = model(*feeds(job.test, rows))
            hits += int((logits.argmax(1) == job.test.labels[rows]).sum())
        accuracies.append(hits / len(job.test))
    versions = {"onnxruntime-training": onnxruntime.__version__}
    record.write(destination, accuracies, versions | {"its python": platform.python_version()})


def put(parameters: Any, values: Any) -> None:
    """Set the parameters' values, by the adapter's names."""
    for name, parameter in parameters.items():
        parameter.data = np.ascontiguousarray(values[name.removesuffix(SCALED)])


def disk(gradients: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Gradients by PEFT's names, in PEFT's orientation."""
    plain = {name.removesuffix(SCALED): gradient for name, gradient in gradients.items()}
    return {n: g.T if n.endswith((".lora_A", ".lora_B")) else g for n, g in plain.items()}


if __name__ == "__main__":
    main()
