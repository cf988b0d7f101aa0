"""A weights file that is read beside other work: nothing runs, and nothing changes, before its digest is known."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from edgelora import Bundle, BundleError, LoraConfig, Model, TrainingConfig, check, file_check, train
from edgelora.adapter import new_adapter, write_adapter
from edgelora.data import TextSample
from edgelora.file_check import LARGE
from edgelora.manifest import FileEntry
from edgelora.training_state import STATE_FILE
from tests.device import tiny
from tests.device.command import Command

SAMPLES = [TextSample(row["text"], row["label"]) for row in tiny.commands(6)]
WEIGHTS = "weights.bin"
ALTERED = r"copy\.edgelora: damaged[\s\S]*weights\.bin does not have the sha256"


@pytest.fixture
def large(damaged: Path) -> Path:
    """The bundle with a weights file of more than 4 MiB: what is added is no tensor's."""
    with (damaged / WEIGHTS).open("ab") as file:
        file.write(bytes(LARGE))
    content = (damaged / WEIGHTS).read_bytes()
    body = json.loads((damaged / "bundle.json").read_text())
    body["files"][WEIGHTS] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (damaged / "bundle.json").write_text(json.dumps(body))
    return damaged


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_large_bundle_is_used(large: Path, tmp_path: Path):
    model = Model.open(large, tmp_path / "store")
    assert model.bundle.verified() is model.bundle
    train(model, "ann", SAMPLES, config=TrainingConfig(num_train_epochs=1, batch_size=3))
    assert model.predict(["make the room warm"], "ann")


@pytest.mark.parametrize("place", [0, LARGE // 2, -1])
def test_an_altered_byte_anywhere_is_found(large: Path, place: int):
    flip(large / WEIGHTS, place)
    bundle = Bundle.open(large)
    for use in (bundle.verified, lambda: bundle.forward, lambda: bundle.forward, lambda: check(bundle)):
        with pytest.raises(BundleError, match=ALTERED):
            use()


def test_training_is_refused_before_it_changes_anything(large: Path, tmp_path: Path):
    """An adapter that is trained further, and the state of another run that it would discard, stay as they were."""
    store = tmp_path / "store"
    few = TrainingConfig(num_train_epochs=1, batch_size=3, max_steps=1)
    train(Model.open(large, store), "ann", SAMPLES, config=few)
    state = Model.open(large, store).store.state_path("ann")
    state.mkdir(parents=True, exist_ok=True)
    (state / STATE_FILE).write_bytes(b"of another run")
    before = content_of(store)
    flip(large / WEIGHTS, -1)
    with pytest.raises(BundleError, match=ALTERED):
        train(Model.open(large, store), "ann", SAMPLES[:4], config=few, discard=True)
    assert before == content_of(store)


def test_training_of_a_new_name_leaves_nothing_of_it(large: Path, tmp_path: Path):
    flip(large / WEIGHTS, -1)
    with pytest.raises(BundleError, match=ALTERED):
        train(Model.open(large, tmp_path / "store"), "ann", SAMPLES, config=TrainingConfig(max_steps=1))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("import", "--adapter", "c"),
        ("adapters", "combine", "c", "--from", "ann", "ben", "--head-from", "ann"),
        ("adapters", "rollback", "ann", "--to", "1"),
        ("adapters", "remove", "ann"),
        ("adapters", "limits", "--keep-versions", "3"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_that_change_the_store_are_refused(
    large: Path, tmp_path: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    model, run = Model.open(large, tmp_path / "store"), Command(capsys)
    for seed, name in enumerate(("ann", "ann", "ben")):
        made = new_adapter(model.bundle.manifest, LoraConfig(r=2), ("a", "b"), rng=np.random.default_rng(seed))
        model.store.save(name, made)
    write_adapter(model.store.load("ann"), tmp_path / "files")
    verb, *arguments = [*command, *([tmp_path / "files"] if command[0] == "import" else [])]
    before = content_of(tmp_path / "store")
    flip(large / WEIGHTS, LARGE // 2)
    message = run.refused(verb, large, *arguments, "--store", tmp_path / "store")
    assert re.search(ALTERED, message), message
    assert before == content_of(tmp_path / "store")
    flip(large / WEIGHTS, LARGE // 2)
    run.json(verb, large, *arguments, "--store", tmp_path / "store")
    assert before != content_of(tmp_path / "store")


def test_what_is_found_at_once_is_told_with_the_rest(large: Path):
    flip(large / WEIGHTS, -1)
    flip(large / "tokenizer.json", 5)
    with pytest.raises(BundleError, match=r"tokenizer\.json does not have[\s\S]*weights\.bin does not have"):
        Bundle.open(large)


def test_a_weights_file_that_cannot_be_loaded_is_told_as_altered(large: Path):
    """What ONNX Runtime says of it is not what is wrong."""
    (large / WEIGHTS).write_bytes(bytes((large / WEIGHTS).stat().st_size))
    with pytest.raises(BundleError, match=ALTERED):
        Bundle.open(large).graph("train-cross-entropy.onnx")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("altered", [False, True])
def test_a_forked_process_compares_for_itself(large: Path, monkeypatch: pytest.MonkeyPatch, altered: bool):
    """The thread that reads is not in the child, and had not come to its end."""
    if altered:
        flip(large / WEIGHTS, -1)
    forked, read = threading.Event(), file_check._problem_of_content

    def late(path: Path, entry: FileEntry) -> str | None:
        if threading.current_thread() is not threading.main_thread():
            forked.wait()
        return read(path, entry)

    monkeypatch.setattr(file_check, "_problem_of_content", late)
    bundle = Bundle.open(large)
    child = os.fork()
    if not child:
        status = 2
        try:
            bundle.verified()
            status = 0
        except BundleError as error:
            status = 1 if re.search(ALTERED, str(error)) else 2
        finally:
            os._exit(status)
    forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == altered


def test_without_verification_only_sizes_are_compared(large: Path):
    flip(large / WEIGHTS, -1)
    assert Bundle.open(large, verify=False).forward.outputs
