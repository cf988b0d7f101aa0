"""What this machine's cores can multiply, measured in turn with the contenders: ONNX Runtime's MatMul and numpy's.

Options: `sizes`, a list of `[m, k, n]`. A step multiplies each size by both, once; the result lists, by step, the
fastest rate in operations a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.job import GRADIENTS_FILE, RESULT_FILE, TURN, Job, wait_for_turn, worker_arguments, worker_options

Product = Callable[[], Any]
RUNS = 5


def main() -> None:
    folder, destination, _ = worker_arguments()
    job = Job.read(folder)
    sizes: list[list[int]] = worker_options()["sizes"]
    runs = [
        (f"{name} {m}×{k}×{n}", 2.0 * m * k * n, product)
        for m, k, n in sizes
        for name, product in pair(m, k, n, job.settings.threads).items()
    ]
    for _, _, product in runs:
        product()
    steps: list[dict[str, float]] = []
    for step in range(job.total_steps):
        steps.append({name: operations / seconds(product) for name, operations, product in runs})
        if step % TURN == 0:
            wait_for_turn()
    wait_for_turn()
    destination.mkdir(parents=True, exist_ok=True)
    np.savez(destination / GRADIENTS_FILE)
    (destination / RESULT_FILE).write_text(json.dumps({"rates": steps}), encoding="utf-8")


def pair(m: int, k: int, n: int, threads: int) -> dict[str, Product]:
    """X·W with a constant W, by each."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    y = np.empty((m, n), np.float32)
    session = matmul_session(w, threads)
    return {"ONNX Runtime": lambda: session.run(None, {"x": x}), "numpy": lambda: np.matmul(x, w, out=y)}


def matmul_session(w: np.ndarray, threads: int) -> Any:
    """A session of one MatMul, whose weight ONNX Runtime packs beforehand."""
    make = onnx.helper
    value = make.make_tensor_value_info
    graph = make.make_graph(
        [make.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [value("x", onnx.TensorProto.FLOAT, [None, w.shape[0]])],
        [value("y", onnx.TensorProto.FLOAT, [None, w.shape[1]])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def seconds(product: Product) -> float:
    """The shortest of some runs in a row: after a wait, threads sleep and caches hold what others used."""
    times: list[float] = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        product()
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    main()
