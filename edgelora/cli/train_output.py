"""What train shows: a line of progress, a line for each epoch, the report."""

from __future__ import annotations

import time

import numpy as np

from edgelora.cli.common import end_progress, note, progress_line, table
from edgelora.memory import peak_memory
from edgelora.trainer import StepResult
from edgelora.training_config import TrainingConfig
from edgelora.training_report import TrainingReport
from edgelora.training_state import Progress


class EpochLines:
    """Shows steps on one line and a finished epoch on a line of its own; of losses `of_tokens` also the perplexity."""

    def __init__(self, quiet: bool, of_tokens: bool = False) -> None:
        self.quiet, self.of_tokens = quiet, of_tokens
        self.epochs_shown = 0
        self.started = time.monotonic()
        self.first = 0

    def __call__(self, step: StepResult, progress: Progress) -> None:
        if not self.first:
            self.first = step.step
            just_ended = not progress.epoch_losses
            self.epochs_shown = len(progress.history) - just_ended
            if step.step > 1 and not self.quiet:
                note(f"continuing at step {step.step} of {step.total_steps}")
        if self.quiet:
            return
        done = step.step - self.first + 1
        left = (step.total_steps - step.step) * (time.monotonic() - self.started) / done
        if len(progress.history) > self.epochs_shown:
            self.epochs_shown = len(progress.history)
            end_progress()
            entry = progress.history[-1]
            parts = [
                f"{name.replace('eval_', 'validation ')} {value:.4f}"
                for name, value in entry.items()
                if name != "epoch"
            ]
            if self.of_tokens:
                parts.insert(1, f"train_perplexity {_perplexity(entry['train_loss'])}")
            note(f"epoch {int(entry['epoch']):3d}  step {step.step:5d}  " + "  ".join(parts))
        loss = f"loss {step.loss:.4f}" + (f"  perplexity {_perplexity(step.loss)}" if self.of_tokens else "")
        progress_line(f"step {step.step}/{step.total_steps}  {loss}  lr {step.learning_rate:.2e}  {left:.0f} s left")


def _perplexity(loss: float) -> str:
    return f"{np.exp(loss):.4g}"


def report_text(report: TrainingReport, samples: int, seconds: float, config: TrainingConfig) -> str:
    """The report for people: of the epoch whose adapter was saved."""
    if report.already_done and report.gate is None:
        return (
            f"{report.adapter}: version {report.version} already holds this run ({report.steps} steps); nothing was "
            "trained. --again trains further, --restart begins anew."
        )
    rows: list[tuple[str, float]] = [
        ("samples", samples),
        ("steps", report.steps),
        ("trainable parameters", report.trainable_parameters),
    ]
    if report.labels:
        rows.append(("classes", len(report.labels)))
    if report.history:
        best = report.best_epoch if config.load_best_model_at_end else None
        kept = report.history[(best or len(report.history)) - 1]
        rows += [(name.replace("eval_", "validation ").replace("_", " "), value) for name, value in kept.items()]
    rows.append(("seconds", seconds))
    if report.memory is not None:
        rows.append(("predicted peak MB", round(report.memory.predicted / 1e6)))
        if (peak := peak_memory()) is not None:
            rows.append(("measured peak MB", round(peak / 1e6)))
    stopped = " (stopped early)" if report.stopped_early else ""
    held = "" if report.active else ", and did not pass the gate: the version before stays current"
    text = f"{report.adapter}: version {report.version} saved{stopped}{held}\n" + table(rows, ("", ""))
    text += "".join(f"\n{one}" for one in report.notes)
    if report.gate is not None:
        text += f"\ngate: {report.gate.reason}"
    if not report.active:
        text += f"\nto use it all the same: edgelora adapters … rollback {report.adapter} --to {report.version}"
    if config.gradient == "spsa":
        passes = 2 * config.spsa_directions
        text += f"\ngradients were zeroth-order estimates (SPSA), {passes} forward passes a step"
    return text
