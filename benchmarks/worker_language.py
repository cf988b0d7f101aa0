"""One run of a language model's training by EdgeLoRA, on the device package and numpy alone.

Options: those of worker_edgelora.py: `bundle`, `session`, `training`, `ram`. After training, the loss of the held-out
rows, in nats a token.
"""

from __future__ import annotations

import platform

import numpy as np
from numpy.typing import NDArray

import edgelora
from benchmarks.job import INITIAL, PROBE, Job, Recorder, TokenRows, worker_arguments, worker_options
from benchmarks.worker_edgelora import adapter, disk_gradients
from edgelora import Bundle, SessionSettings, Trainer, TrainingConfig
from edgelora.memory_plan import follow, plan_memory
from edgelora.objectives import Array, Feeds, OnSamples
from edgelora.session import ENGINE_VERSION

Rows = NDArray[np.int64]


class Continuation(OnSamples):
    """The cross-entropy of each token that is to be foretold, at the place of the token before it."""

    loss, metric, higher_is_better = "cross-entropy", "loss", False

    def __init__(self, data: TokenRows) -> None:
        self.data, self.rows = data, data

    def weight(self, rows: Rows) -> float:
        return float(len(rows) * self.rows.counted)

    def inputs(self, rows: Rows) -> Feeds:
        return dict(self.rows.feeds(rows))

    def targets(self, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """The token after each place `[rows, tokens]`, and whether it is to be foretold."""
        following = np.pad(self.rows.labels[rows, 1:], ((0, 0), (0, 1)), constant_values=-100)
        return np.maximum(following, 0), following >= 0

    def feeds(self, rows: Rows, total: float) -> Feeds:
        labels, counted = self.targets(rows)
        return self.inputs(rows) | {"labels": labels, "loss_weight": (counted / total).astype(np.float32)}

    def metrics(self, outputs: object, rows: object) -> dict[str, float]:
        raise NotImplementedError("held-out rows are scored by `held_out_loss`")


def held_out_loss(trainer: Trainer, held_out: Continuation) -> float:
    """Nats a token by the bundle's graph of scores."""
    language = trainer.bundle.manifest.language
    assert language is not None
    graph, fed = trainer.bundle.graph(language.score), trainer.current().feeds(trainer.bundle.manifest)
    losses: list[Array] = []
    for rows in held_out.rows.evaluation_batches():
        labels, counted = held_out.targets(rows)
        nll = graph.run({**held_out.inputs(rows), "labels": labels, **fed}, ["nll"])["nll"]
        graph.give_back_pages()
        losses.append(nll[counted])
    return float(np.concatenate(losses).astype(np.float64).mean())


def main() -> None:
    folder, destination, started = worker_arguments()
    job, options = Job.read(folder), worker_options()
    record = Recorder("EdgeLoRA", job, started)
    settings = SessionSettings(**{"threads": job.settings.threads, **options.get("session", {})})
    bundle = Bundle.open(options.get("bundle", job.settings.bundle), settings)
    usual = {
        "num_train_epochs": job.settings.epochs,
        "max_steps": job.settings.max_steps,
        "batch_size": job.settings.batch_size,
        "learning_rate": job.settings.learning_rate,
        "max_grad_norm": 0.0,
    }
    config = TrainingConfig(**(usual | options.get("training", {})))
    trainer = Trainer(bundle, adapter(folder / INITIAL, bundle), Continuation(job.train), config)
    plan = None
    if "ram" in options:
        plan = plan_memory(trainer, None, options["ram"])
        follow(plan, trainer)
    batches = job.batches()
    for step, rows in enumerate(batches):
        record.begin_step()
        record.end_step(trainer.step(rows).loss)
        if step == 0:
            record.keep_gradients(INITIAL, disk_gradients(trainer))
        record.next_turn()
    record.end_training()
    further = {
        "held_out_loss": held_out_loss(trainer, Continuation(job.test)),
        "plan": None if plan is None else plan.to_dict(),
    }
    if plan is None:
        probe = Trainer(bundle, adapter(folder / PROBE, bundle), Continuation(job.train), config)
        probe.accumulate(batches[0])
        record.keep_gradients(PROBE, disk_gradients(probe))
    versions = {
        "edgelora": edgelora.__version__,
        "onnxruntime": ENGINE_VERSION,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    record.write(destination, [], versions, further)


if __name__ == "__main__":
    main()
