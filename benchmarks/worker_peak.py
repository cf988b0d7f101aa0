"""What this machine's cores multiply, measured in turn with the contenders: each size by every way that there is.

Options: `sizes`, a list of `[m, k, n]`. A step multiplies each size by every way, some times in a row; the result
lists, by step, the fastest rate in operations a second.
"""

from __future__ import annotations

import json

import numpy as np

from benchmarks.job import GRADIENTS_FILE, RESULT_FILE, TURN, Job, wait_for_turn, worker_arguments, worker_options
from edgelora.multiplication import Products

RUNS = 5


def main() -> None:
    folder, destination, _ = worker_arguments()
    job = Job.read(folder)
    products = {f"{m}×{k}×{n}": Products(m, k, n, job.settings.threads) for m, k, n in worker_options()["sizes"]}
    steps: list[dict[str, float]] = []
    for step in range(job.total_steps):
        rates = {size: product.rates(RUNS) for size, product in products.items()}
        steps.append({f"{way} {size}": rate for size, ways in rates.items() for way, rate in ways.items()})
        if step % TURN == 0:
            wait_for_turn()
    wait_for_turn()
    destination.mkdir(parents=True, exist_ok=True)
    np.savez(destination / GRADIENTS_FILE)
    (destination / RESULT_FILE).write_text(json.dumps({"rates": steps}), encoding="utf-8")


if __name__ == "__main__":
    main()
