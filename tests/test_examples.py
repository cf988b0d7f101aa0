"""The examples run as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgelora.errors import ConversionError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base() -> None:
    """The recipe's model is in the cache, or the test is skipped."""
    from edgelora_tools.recipes import fetch, load_recipe

    try:
        fetch(load_recipe("minilm-l3"), lambda _: None)
    except ConversionError as error:
        pytest.skip(f"the recipe's model cannot be fetched: {error}")


def run(name: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    command = [sys.executable, str(ROOT / "examples" / name), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_loss(base: None, tmp_path: Path):
    said = run("own_loss.py", tmp_path)
    losses = [float(x) for x in re.findall(r"loss (\S+)$", said, re.MULTILINE)]
    assert losses[-1] < 0.8 * losses[0]
    found = re.search(r"(\S+) before, (\S+) after", said)
    assert found is not None
    assert float(found[2]) > float(found[1])
    assert (tmp_path / "features.adapters" / "early_bird" / "versions" / "000001").is_dir()


def test_own_loss_has_the_gradient_of_its_loss(monkeypatch: pytest.MonkeyPatch):
    import numpy as np

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from own_loss import cosine_loss  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(0)
    e, labels, v = rng.standard_normal((6, 5)), np.array([0, 1, 0, 2, 1, 1]), rng.standard_normal((6, 5))
    slope = (cosine_loss(e + 1e-5 * v, labels)[0] - cosine_loss(e - 1e-5 * v, labels)[0]) / 2e-5
    assert float((cosine_loss(e, labels)[1] * v).sum()) == pytest.approx(slope, rel=1e-5)


def test_python_api(base: None, tmp_path: Path):
    said = run("python_api.py", tmp_path)
    assert "'coffee_start', 'music_play'" in said
    assert "version 2 knows 9 classes" in said
    assert "back to version 1, 8 classes" in said


def test_settings_of_resnet8_are_chosen_on_photographs_that_are_learned_from(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("edgelora_tools.sources.tflite")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from resnet8_tflite import parts  # pyright: ignore[reportMissingImports]

    learned, held = parts(23, choose=False)
    assert sorted([*learned, *held]) == list(range(23))
    fewer, tried = parts(23, choose=True)
    assert sorted([*fewer, *tried]) == learned.tolist()
    assert len(held) == 5 and len(tried) == 4


def test_spoken_digits_tell_ones_own_speaker_from_others(monkeypatch: pytest.MonkeyPatch):
    import numpy as np

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from spoken_digits import split_of  # pyright: ignore[reportMissingImports]

    own, others = split_of(np.array([[[1.0, 0.25], [0.5, 0.5]], [[0.0, 0.0], [1.0, 1.0]]]))
    assert own.tolist() == [0.75, 0.5]
    assert others.tolist() == [0.375, 0.5]
