"""The example of roles, on a tiny model: those who say other things are told apart, by turns that were held out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(("held_out", "learned", "judged", "table"), [("last", 16, 4, 10), ("blocks", 14, 4, 7)])
def test_each_of_two_roles_is_foretold_best_by_its_own_adapter(
    held_out: str,
    learned: int,
    judged: int,
    table: int,
    language_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    pytest.importorskip("matplotlib")
    import roles  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(roles, "COUNT", 2)
    shutil.copytree(language_bundle, tmp_path / "roles.edgelora")
    (tmp_path / "input.txt").write_text(play(30), encoding="utf-8")
    asked = [str(tmp_path), "--plays", str(tmp_path / "input.txt"), "--rate", "2e-2", "--updates", "16"]
    asked += ["--held-out", held_out]
    roles.main([*asked, "--choose"])
    chosen = capsys.readouterr().out
    assert f"{learned} turns learned; {judged} more cost" in chosen and "held-out" not in chosen
    roles.main(asked)
    said = capsys.readouterr().out
    assert said.startswith(chosen)
    assert "own adapter is the best for 2 of 2 roles" in said
    beyond = re.findall(rf"^(?:ANN|BOB): (\S+) ± .*, on {table} turns", said, re.MULTILINE)
    assert len(beyond) == 2 and max(map(float, beyond)) < -0.5
    assert (tmp_path / "roles.png").stat().st_size > 0


def test_an_adapter_of_other_turns_or_settings_is_not_learned_further(
    language_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import roles  # pyright: ignore[reportMissingImports]

    shutil.copytree(language_bundle, tmp_path / "roles.edgelora")
    (tmp_path / "input.txt").write_text(play(30), encoding="utf-8")
    asked = [str(tmp_path), "--plays", str(tmp_path / "input.txt"), "--roles", "ANN", "--updates", "4", "--choose"]
    told: list[str] = []
    for more in (["--held-out", "last"], ["--seed", "7"], ["--rate", "2e-2"], []):
        roles.main([*asked, *more])
        told.append(capsys.readouterr().out)
    shutil.rmtree(tmp_path / "roles.adapters")
    roles.main(asked)
    assert capsys.readouterr().out == told[-1]


def test_by_time_no_turn_is_learned_that_comes_after_one_of_the_table():
    from roles import HELD_OUT, VALIDATION, answers, most_heard, parted  # pyright: ignore[reportMissingImports]

    text = play(30)
    assert most_heard(text, 2) == ["ANN", "BOB"]
    found = answers(text, "BOB", chats=False)
    before, table = parted(found, HELD_OUT, None)
    learned, judged = parted(before, VALIDATION, None)
    assert [*learned, *judged, *table] == found
    assert (len(learned), len(judged), len(table)) == (16, 4, 10)


@given(count=st.integers(1, 100), parts=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_no_turn_of_a_block_is_beside_one_that_is_kept(count: int, parts: int, seed: int):
    from roles import EVERY, answers, parted  # pyright: ignore[reportMissingImports]

    found = answers(play(count), "BOB", chats=False)
    kept, held = parted(found, parts, np.random.default_rng(seed))
    assert parted(found, parts, np.random.default_rng(seed)) == (kept, held)
    places = [found.index(one) for one in kept]
    blocks = [found.index(one) for one in held]
    assert places == sorted(places) and blocks == sorted(blocks)
    assert all(abs(one - other) > 1 for one in places for other in blocks)
    in_each = np.bincount(np.array(blocks, int) // EVERY, minlength=1)[: count // EVERY]
    assert (in_each == EVERY // parts).all()
    assert count - len(kept) - len(held) <= 2 * -(-count // EVERY)


def test_the_error_of_a_difference_is_that_of_its_linearization():
    from roles import bits_per_byte, difference  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(1)
    size = rng.integers(20, 400, 300).astype(float)
    own = np.stack([size * rng.normal(1.6, 0.1, 300), size], 1)
    other = np.stack([own[:, 0] + size * rng.normal(0.03, 0.05, 300), size], 1)
    beyond, error = difference(own, other)
    assert beyond == pytest.approx(bits_per_byte(own) - bits_per_byte(other))
    apart = own[:, 0] - other[:, 0] - beyond * size  # of a ratio of sums (Cochran, Sampling Techniques)
    assert error == pytest.approx(np.sqrt((apart**2).sum()) / size.sum(), rel=0.1)
