"""How long a run of the speed benchmark will take: its steps, at the pace of numpy's products. Rough: ± a half."""

from __future__ import annotations

from dataclasses import dataclass

OURS, RIVAL = 1.0, 2.5  # the time of a step, to that of the products that it needs
FORWARD = 1 / 3  # of a step
OUR_START, RIVAL_START = 3.0, 15.0  # seconds


@dataclass(frozen=True)
class Round:
    """`steps` by each of so many contenders, in so many runs; and the texts evaluated, in batches."""

    runs: int
    steps: int
    ours: float
    rivals: float
    evaluations: float = 0.0

    def seconds(self, step: float) -> float:
        """Of the round, where the products of a step take `step` seconds."""
        pace = self.ours * OURS + self.rivals * RIVAL
        starts = self.ours * OUR_START + self.rivals * RIVAL_START
        return self.runs * (step * pace * (self.steps + FORWARD * self.evaluations) + starts)


def in_words(seconds: float) -> str:
    """ "2 minutes", "1.5 hours"."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{max(1, round(seconds / 60))} minutes"
