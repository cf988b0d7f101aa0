"""Runs of a benchmark: a real one as a command, one of given figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import ROOT, Run


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks …` in this folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    words = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def made_up(losses: list[float], gradient: list[float], **extra: Any) -> Run:
    result = {
        "losses": losses,
        "step_seconds": [9.0, 1.0, 2.0],
        "step_cpu_seconds": [9.0, 1.0, 2.0],
        "epoch_ends": [1, 2],
        "accuracy": [0.5, 0.9],
        "peak_memory_mb": 1.0,
        "peak_memory_with_evaluation_mb": 2.0,
        "cold_start_seconds": 3.0,
    }
    return Run(result | extra, {"initial/x": np.array(gradient, np.float32)})
