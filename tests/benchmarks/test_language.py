"""The benchmark of language models follows PEFT."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import language

DATA = Path(os.environ.get("EDGELORA_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_a_language_models_training_is_pefts(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (DATA / "tinyshakespeare.zip").is_file():
        pytest.skip(f"{DATA / 'tinyshakespeare.zip'} is absent: set EDGELORA_DATA")
    monkeypatch.setenv("EDGELORA_CACHE", str(tmp_path))
    options = language.LanguageOptions(
        model=language_folder, rounds=("step",), bases=("float32",), rivals=("peft-again",)
    ).quick()
    body = language.run(options, lambda _: None)
    found = body["rounds"]["step"]
    assert found["agreement"]["loss"] < 1e-4
    assert all(worst["relative_error"] < 1e-4 for worst in found["agreement"]["gradients"].values())
    ours, small, rival = (found["cost"][who] for who in ("float32", "float32-small", "peft-again"))
    assert small["plan"]["predicted"] <= options.ram
    assert ours["held_out_loss"]["median"] == pytest.approx(rival["held_out_loss"]["median"], abs=1e-4)
    assert body["ratios"]["peak"] == small["peak_memory_mb"]["median"] / rival["peak_memory_mb"]["median"]
    assert body["each_ratio"]["peak"] == pytest.approx([body["ratios"]["peak"]])
    assert len(body["each_ratio"]["step"]) == options.repeats
    table = language.markdown(body)
    assert "| fp32 step |" in " ".join(table.split())
    assert "PEFT, sdpa, gradient checkpointing" in table
