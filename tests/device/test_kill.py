"""The real command, killed for real: continued, it ends with the bytes of a run that nobody touched."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.device import tiny

KILLS = 7
SETTINGS = (  # noqa: SIM905
    "--epochs 40 --batch-size 4 --save-steps 3 --lr 0.01 --lora-dropout 0.1 --rank 4 --validation-split 0.2"
).split()
PATIENCE = 60.0


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def wait_for(condition, process) -> None:
    """Until the condition holds or the process has ended."""
    until = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.001)


def modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def version(store: Path) -> dict[str, bytes]:
    """The files of the current version."""
    folder = store / "home" / "versions" / f"{int((store / 'home' / 'current').read_text()):06d}"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands(30))


def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(bundle: Path, data: Path, tmp_path: Path):
    def command(store: str):
        return tiny.start("train", bundle, "--adapter", "home", "--data", data, "--store", tmp_path / store, *SETTINGS)

    whole = command("whole")
    status, _, err = finish(whole)
    assert status == 0, err

    rng, state = random.Random(0), tmp_path / "killed" / "home" / "training" / "state.safetensors"
    kills, steps = 0, []
    while kills < KILLS:
        process, seen = command("killed"), modified(state)
        if kills:  # the first dies while it starts
            wait_for(lambda: modified(state) != seen, process)  # noqa: B023
        time.sleep(rng.uniform(0, 0.15))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        if state.exists():
            content = state.read_bytes()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            steps.append(json.loads(header["__metadata__"]["progress"])["step"])
    assert kills >= 6, "the run ended before it could be killed often enough; make it longer"
    assert steps == sorted(steps) and steps[-1] > steps[0], "every life goes on where the last one stopped"
    status, _, err = finish(command("killed"))
    assert status == 0, err
    assert "continuing at step" in err
    assert version(tmp_path / "killed") == version(tmp_path / "whole")
    assert not state.exists()
    assert set(version(tmp_path / "whole")) >= {"adapter_model.safetensors", "edgelora.json", "adapter_config.json"}


def test_a_run_that_is_killed_lets_go_of_its_adapter_and_knows_its_data(bundle: Path, data: Path, tmp_path: Path):
    """Killed, the lock is free; other data is refused with a way out; a second process is told who holds it."""
    store = tmp_path / "store"
    arguments = ("--adapter", "home", "--store", store, "--epochs", "4000", "--batch-size", "4", "--save-steps", "3")
    state = store / "home" / "training" / "state.safetensors"
    first = tiny.start("train", bundle, "--data", data, *arguments)
    wait_for(state.exists, first)
    status, _, err = finish(tiny.start("train", bundle, "--data", data, *arguments))
    assert status == 2
    assert "in use" in err and str(first.pid) in err and "Traceback" not in err
    other = tiny.write_jsonl(tmp_path / "other.jsonl", tiny.commands(12))
    held = tiny.start("adapters", bundle, "remove", "home", "--store", store)
    assert finish(held)[0] == 2, "an adapter in training is not removed"
    assert first.poll() is None, "and the training goes on"
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    status, _, err = finish(tiny.start("train", bundle, "--data", other, *arguments))
    assert status == 2
    assert "other data or settings" in err and "--discard" in err and "Traceback" not in err
    assert state.exists()
    short = [*arguments[:4], "--epochs", "1"]
    status, out, err = finish(tiny.start("train", bundle, "--data", other, *short, "--discard", "--json"))
    assert status == 0, err
    assert json.loads(out)["resumed_at"] == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_continues(bundle: Path, data: Path, tmp_path: Path, sent: signal.Signals):
    """Ctrl-C and a polite stop are no errors of the program's: no traceback, and the same command continues."""
    store = tmp_path / "store"
    arguments = ("--adapter", "home", "--store", store, "--epochs", "40", "--batch-size", "4", "--save-steps", "1")
    state = store / "home" / "training" / "state.safetensors"
    first = tiny.start("train", bundle, "--data", data, *arguments)
    wait_for(state.exists, first)
    time.sleep(0.05)
    first.send_signal(sent)
    status, _, err = finish(first)
    assert status in (130, -sent)
    assert "Traceback" not in err
    status, out, err = finish(tiny.start("train", bundle, "--data", data, *arguments, "--json"))
    assert status == 0, err
    report = json.loads(out)
    assert report["resumed_at"] > 0
    assert report["steps"] == 40 * 8
    assert np.isfinite(report["history"][-1]["train_loss"])
