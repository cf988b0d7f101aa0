"""`edgelora adapters` for what belongs to a person, for limits, and with a key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgelora import AdapterStore, Key, LoraConfig, Model
from edgelora.adapter import TENSORS_FILE, new_adapter
from edgelora.cli import main
from tests.device import tiny


@pytest.fixture
def run(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`edgelora adapters BUNDLE …` on the store of this test."""

    def command(*words: str | Path, verb: str = "adapters") -> tuple[int, str, str]:
        status = main([verb, str(bundle), *map(str, words), "--store", str(tmp_path / "store")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def save(bundle: Path, store: Path, *names: str, key: Key | None = None) -> AdapterStore:
    model = Model.open(bundle, store, key=key)
    for name in names:
        model.store.save(name, new_adapter(model.bundle.manifest, LoraConfig(r=1), ("x", "y")))
    return model.store


def test_a_person_s_data_is_given_out_and_deleted(run: Any, bundle: Path, tmp_path: Path):
    store = save(bundle, tmp_path / "store", "ann", "ann+music", "anna")
    status, out, _ = run("export", "--person", "ann", "-o", tmp_path / "out", "--json")
    assert status == 0 and json.loads(out)["exported"] == ["ann", "ann+music"]
    assert f"ann/versions/000001/{TENSORS_FILE}" in json.loads(out)["files"]
    assert Model.open(bundle, tmp_path / "out").predict(["make the room warm"], "ann+music") in (["x"], ["y"])
    status, _, err = run("export", "--person", "ann", "-o", tmp_path / "out")
    assert status == 2 and "exists" in err
    status, _, err = run("export", "ann")
    assert status == 2 and "-o DIR" in err
    status, out, _ = run("remove", "--person", "ann")
    assert (status, out) == (0, "ann: removed\nann+music: removed\n")
    assert store.list() == ["anna"]
    status, _, err = run("remove", "--person", "ann")
    assert status == 2 and "belongs to 'ann'" in err
    status, _, err = run("remove", "anna", "--person", "anna")
    assert status == 2 and "not both" in err
    assert run("remove", "anna", "--json")[1] == '{\n "removed": "anna"\n}\n'


def test_limits_are_kept_in_the_store(run: Any, bundle: Path, tmp_path: Path):
    store = save(bundle, tmp_path / "store", "ann")
    assert json.loads(run("limits", "--json")[1]) == {"keep_versions": 16, "quota": None, "deleted": []}
    status, out, _ = run("limits", "--keep-versions", "3", "--quota", "1MB")
    assert status == 0 and "3 versions" in out and "1.0 MB" in out
    assert (store.settings.keep_versions, store.settings.quota) == (3, 1_000_000)
    run("limits", "--keep-versions", "all")
    assert (store.settings.keep_versions, store.settings.quota) == (None, 1_000_000)
    run("limits", "--quota", "none")
    assert store.settings.quota is None
    status, _, err = run("limits", "--keep-versions", "0")
    assert status == 2 and "keep_versions" in err
    status, _, err = run("limits", "--quota", "1kB")
    assert status == 2 and "too small" in err


def test_a_store_with_a_key(run: Any, bundle: Path, tmp_path: Path):
    (tmp_path / "key").write_text(bytes(range(32)).hex())
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands(12))
    key = ("--key-file", tmp_path / "key")
    settings = ("--adapter", "ann", "--data", data, "--epochs", "1", "--batch-size", "4", "--rank", "1")
    status, _, err = run(*settings, *key, verb="train")
    assert status == 0, err
    status, out, _ = run("--adapter", "ann", "turn the light up", *key, verb="predict")
    assert status == 0 and any(label in out for label in tiny.COMMANDS)
    status, _, err = run("--adapter", "ann", "turn the light up", verb="predict")
    assert status == 2 and "--key-file" in err
    (tmp_path / "other").write_text("00" * 32)
    status, _, err = run("--adapter", "ann", "on", "--key-file", tmp_path / "other", verb="predict")
    assert status == 2 and "another key" in err
    status, out, _ = run("export", "ann", "-o", tmp_path / "out", *key)
    assert status == 0 and "not encrypted" in out
    assert Model.open(bundle, tmp_path / "out").predict(["turn the light up"], "ann")


def test_a_damaged_current_version_is_told_and_the_last_good_one_is_used(run: Any, bundle: Path, tmp_path: Path):
    store = save(bundle, tmp_path / "store", "ann")
    adapter = store.load("ann")
    store.save("ann", adapter.with_tensors({n: t + 1 for n, t in adapter.tensors.items()}))
    (tmp_path / "store" / "ann" / "versions" / "000002" / TENSORS_FILE).write_bytes(b"")
    status, out, err = run("--adapter", "ann", "turn the light up", verb="predict")
    assert status == 0 and "turn the light up" in out
    assert err.startswith("edgelora: warning: ") and "version 1 is used in its place" in err
    assert "Traceback" not in err and ".py:" not in err
