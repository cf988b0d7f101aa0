"""The tables of the tasks on real data tell of all seeds; settings are chosen without the data they are told of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import tasks
from benchmarks.measure import BenchmarkError
from benchmarks.tasks.case import HEAD_ALONE, LORA, Grid, Outcome, Progress, adapter_of


@dataclass(frozen=True)
class Known:
    """A case whose outcomes are these, with each seed."""

    accuracies: dict[str, tuple[float, ...]]
    title: str = "Digits"

    def settings(self, quick: bool) -> str:
        return "A net."

    def run(self, folder: Path, quick: bool, seeds: Sequence[int], progress: Progress) -> Iterator[Outcome]:
        for place, seed in enumerate(seeds):
            for side, reached in self.accuracies.items():
                yield Outcome(side, seed, {"accuracy": reached[place]}, 2.0 + seed)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Known({HEAD_ALONE: (0.5, 0.7), LORA: (0.9, 0.8)})
    monkeypatch.setattr(tasks, "case_of", lambda name: case)


def test_seeds_are_told_by_their_mean_and_between_which_values_they_lie(known: None):
    said: list[str] = []
    body = tasks.run(["sign-digits"], False, (3, 5), said.append)
    assert [one["seed"] for one in body["sign-digits"]["outcomes"]] == [3, 3, 5, 5]
    told = tasks.markdown(body)
    assert "**Digits.** A net. Seeds 3, 5: means, in brackets the least and the most." in told
    assert f"| {HEAD_ALONE} | 0.600 (0.500–0.700) | 6 |" in told
    assert f"| {LORA} | 0.850 (0.800–0.900) | 6 |" in told
    assert f"sign-digits: {LORA}, seed 5: accuracy 0.8000 (7 s)" in said


def test_one_seed_is_told_without_bounds(known: None, tmp_path: Path):
    body = tasks.run(["sign-digits"], False, (3,), lambda text: None)
    told = tasks.markdown(body)
    assert "Seeds" not in told
    assert f"| {LORA} | 0.900 | 5 |" in told
    pytest.importorskip("matplotlib")
    tasks.draw(body, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000


@dataclass(frozen=True)
class Learner(Known):
    """A case whose settings can be chosen: the rate is what it reaches."""

    def tried(self, folder: Path, grid: Grid, progress: Progress) -> Iterator[Outcome]:
        for seed, rank, epochs, rate in grid.settings():
            yield Outcome(grid.side(rank, epochs, rate), seed, {"accuracy": rate}, 1.0)


def test_each_setting_is_tried_with_each_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "case_of", lambda name: Learner({}))
    body = tasks.choose(["mouse"], Grid((0.25, 0.5), (3,), (0, 8), (1, 2)), lambda text: None)
    told = tasks.markdown(body)
    assert "Seeds 1, 2" in told
    for rank in (HEAD_ALONE, "LoRA r=8"):
        for rate in (0.25, 0.5):
            assert f"| {rank}, 3 epochs, rate {rate:g} | {rate:.3f} ({rate:.3f}–{rate:.3f}) | 1 |" in told
    assert len(body["mouse"]["outcomes"]) == 8


def test_a_case_whose_settings_are_not_chosen_so_is_told(known: None):
    with pytest.raises(BenchmarkError, match="raccoon"):
        tasks.choose(["raccoon"], Grid((1e-3,), (1,)), lambda text: None)


def test_rank_0_is_a_head_alone():
    assert adapter_of(0).target_modules == ()
    assert (adapter_of(4).r, adapter_of(4).lora_alpha, adapter_of(4).target_modules) == (4, 8, None)
