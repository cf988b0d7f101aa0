"""The example of roles, on a tiny model: those who say other things are told apart, by turns that come after."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def play(turns: int) -> str:
    """Two who speak in turn, each in letters of its own, and a third who says little."""
    rng = np.random.default_rng(0)
    said = {"ANN": "abc", "BOB": "xyz"}
    lines = [f"{who}:\n{''.join(rng.choice(list(said[who]), 12))}" for _ in range(turns) for who in said]
    return "\n\n".join(["FOOL:\nHa!", *lines])


def test_each_of_two_roles_is_foretold_best_by_its_own_adapter(
    language_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("matplotlib")
    import roles  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(roles, "COUNT", 2)
    shutil.copytree(language_bundle, tmp_path / "roles.edgelora")
    (tmp_path / "input.txt").write_text(play(30), encoding="utf-8")
    roles.main([str(tmp_path), "--plays", str(tmp_path / "input.txt"), "--rate", "2e-2", "--updates", "16"])
    said = capsys.readouterr().out
    assert "ANN: 16 turns learned; 4 more cost" in said
    assert "own adapter is the best for 2 of 2 roles" in said
    beyond = [float(x) for x in re.findall(r"^(?:ANN|BOB): (\S+) ±", said, re.MULTILINE)]
    assert len(beyond) == 2 and max(beyond) < -0.5
    assert (tmp_path / "roles.png").stat().st_size > 0


def test_no_turn_is_learned_that_comes_after_one_of_the_table():
    from roles import HELD_OUT, VALIDATION, answers, most_heard, parted  # pyright: ignore[reportMissingImports]

    text = play(30)
    assert most_heard(text, 2) == ["ANN", "BOB"]
    found = answers(text, "BOB", chats=False)
    before, table = parted(found, HELD_OUT)
    learned, judged = parted(before, VALIDATION)
    assert [*learned, *judged, *table] == found
    assert (len(learned), len(judged), len(table)) == (16, 4, 10)


def test_the_error_of_a_difference_is_that_of_resampled_turns():
    from roles import bits_per_byte, difference  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(1)
    size = rng.integers(20, 400, 300).astype(float)
    own = np.stack([size * rng.normal(1.6, 0.1, 300), size], 1)
    other = np.stack([own[:, 0] + size * rng.normal(0.03, 0.05, 300), size], 1)
    beyond, error = difference(own, other)
    again = [rng.integers(0, 300, 300) for _ in range(2000)]
    spread = np.std([bits_per_byte(own[i]) - bits_per_byte(other[i]) for i in again])
    assert beyond == pytest.approx(bits_per_byte(own) - bits_per_byte(other))
    assert error == pytest.approx(spread, rel=0.1)
