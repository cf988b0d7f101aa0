"""What `edgelora train` tells the person: the epoch that is kept, and no epoch twice after a continuation."""

from __future__ import annotations

from edgelora.cli.common import table
from edgelora.cli.train_output import EpochLines, report_text
from edgelora.trainer import StepResult
from edgelora.training_config import TrainingConfig
from edgelora.training_report import TrainingReport
from edgelora.training_state import Progress

HISTORY = [{"epoch": 1, "train_loss": 2.0, "eval_accuracy": 0.9}, {"epoch": 2, "train_loss": 1.0, "eval_accuracy": 0.8}]


def report(best_epoch: int | None) -> TrainingReport:
    return TrainingReport("user-1", 1, 4, 0, 1.0, 0.1, tuple(HISTORY), best_epoch, False, False, 100, ("a", "b"))


def shown(text: str) -> dict[str, str]:
    return dict(line.rsplit(maxsplit=1) for line in text.splitlines() if line.count(" ") and not line.startswith("-"))


def test_the_report_shows_the_epoch_that_is_kept():
    assert shown(report_text(report(1), 4, 1.0, TrainingConfig()))["epoch"] == "1"
    assert shown(report_text(report(1), 4, 1.0, TrainingConfig(load_best_model_at_end=False)))["epoch"] == "2"
    assert shown(report_text(report(None), 4, 1.0, TrainingConfig()))["epoch"] == "2"


def test_a_table_is_straight_with_wide_letters_and_marks():
    told = table([("图.jpg", "ein Bild"), ("u\u0308ber.png", "noch eines"), ("a.png", "x")], ("image", "label"))
    header, rule, *rows = told.splitlines()
    assert header.index("label") == rule.rindex("  ") + 2 == 10
    assert [row.index(text) for row, text in zip(rows, ("ein", "noch", "x"), strict=True)] == [9, 11, 10]


def lines(capsys, first_step: int, losses_left: int) -> str:
    """What is printed when a run goes on at `first_step` with one epoch of two steps behind it."""
    progress = Progress(step=first_step, history=HISTORY[:1], epoch_losses=[1.0] * losses_left)
    EpochLines(False)(StepResult(first_step, 1.0, 1.0, 1e-3, 4), progress)
    return capsys.readouterr().err


def test_a_continued_run_does_not_repeat_an_epoch(capsys):
    assert "epoch" not in lines(capsys, first_step=3, losses_left=1)


def test_losses_of_tokens_are_shown_as_perplexities_too(capsys):
    progress = Progress(step=2, history=HISTORY[:1])
    EpochLines(False, of_tokens=True)(StepResult(2, 1.0, 1.0, 1e-3, 4), progress)
    assert "train_loss 2.0000  train_perplexity 7.389  validation accuracy 0.9" in capsys.readouterr().err


def test_an_epoch_that_ends_with_the_first_step_is_shown(capsys):
    assert "epoch   1" in lines(capsys, first_step=2, losses_left=0)
