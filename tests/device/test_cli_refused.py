"""Every error of the user's is a message and status 2."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.device import tiny
from tests.device.command import QUICK, Command
from tests.device.spoil import edit_manifest, flip


@pytest.mark.parametrize("arguments", [(), ("fly",), ("train",), ("predict",), ("adapters", "x", "grow")])
def test_a_command_that_is_none_is_refused(run: Command, arguments: tuple[str, ...]):
    assert run.refused(*arguments).count("\n") == 1, "a line, and no list of all options"


def test_wrong_words_are_json_where_that_is_asked_for(run: Command):
    status, out, err = run("train", "x", "--adapter", "a", "--data", "d", "--lr", "abc", "--json")
    said = json.loads(out)
    assert status == 2 and said["kind"] == "ConfigError" and "invalid float value: 'abc'" in said["error"]
    assert err == f"edgelora: {said['error']}\n" and "`edgelora train --help`" in err


@pytest.mark.parametrize(
    "words", [("info", "x", "--js"), ("adapters", "x", "--js", "list"), ("generate", "x", "--lora-alph", "4")]
)
def test_an_option_is_written_out(run: Command, words: tuple[str, ...]):
    """Half of --json would ask for results in JSON, and for errors in words."""
    asked = next(word for word in words if word.startswith("--"))
    assert f"unrecognized arguments: {asked}" in run.refused(*words)


NAMES = [
    "../x",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "/etc/x",
    "nul",
    "CON.txt",
    ".hidden",
    "-x",
    "x" * 129,
    "é",
    "a b",
    "a\n",
    "x.",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_adapter_name_is_refused_and_nothing_is_written(
    run: Command, bundle: Path, store: Path, data: Path, tmp_path: Path, name: str
):
    before = sorted(tmp_path.rglob("*"))
    message = run.refused("train", bundle, "--store", store, f"--adapter={name}", "--data", data, *QUICK)
    assert "cannot name an adapter" in message
    for action in ("show", "remove", "rollback"):
        run.refused("adapters", bundle, "--store", store, action, "--", name)
    run.refused("predict", bundle, "--store", store, f"--adapter={name}", "text")
    assert sorted(tmp_path.rglob("*")) in (before, sorted([*before, store]))


def test_an_unknown_adapter_is_named_with_the_known_ones(run: Command, home, bundle: Path, store: Path, data: Path):
    at = (bundle, "--store", store, "--adapter", "away")
    for arguments in (
        ("predict", *at, "text"),
        ("eval", *at, "--data", data),
        ("export", *at, "-o", store / "out"),
        ("adapters", bundle, "show", "away", "--store", store),
        ("adapters", bundle, "remove", "away", "--store", store),
        ("adapters", bundle, "rollback", "away", "--store", store),
    ):
        message = run.refused(*arguments)
        assert "away" in message and "home" in message
    assert [p.name for p in store.iterdir() if p.is_dir() and not p.name.startswith(".")] == ["home"]


def test_an_unknown_version_is_named_with_the_known_ones(run: Command, home, bundle: Path, store: Path, data: Path):
    for version in ("2", "0", "-1", "99999999999999999999"):
        for arguments in (
            ("eval", *home, "--data", data, f"--version={version}"),
            ("export", *home, "-o", store / "out", f"--version={version}"),
            ("adapters", bundle, "rollback", "home", "--store", store, f"--version={version}"),
        ):
            assert f"no version {version}" in run.refused(*arguments)
    assert "no version before 1" in run.refused("adapters", bundle, "rollback", "home", "--store", store)


@pytest.mark.parametrize("action", ["show", "remove", "rollback"])
def test_an_action_needs_its_name(run: Command, bundle: Path, store: Path, action: str):
    assert "NAME" in run.refused("adapters", bundle, action, "--store", store)


def test_predicting_without_an_adapter_where_a_head_is_needed(run: Command, bundle: Path, store: Path):
    assert "adapter" in run.refused("predict", bundle, "--store", store, "the lamp")


@pytest.mark.parametrize("option", [("--packing",), ("--max-length", "9"), ("--truncate",)])
def test_rows_of_tokens_are_language_models(
    run: Command, bundle: Path, store: Path, data: Path, option: tuple[str, ...]
):
    at = ("train", bundle, "--store", store, "--adapter", "ann", "--data", data)
    named = option[0].removeprefix("--").replace("-", "_")
    assert f"{named} is for language models, not for sequence-classification" in run.refused(*at, *QUICK, *option)


def test_predicting_nothing(run: Command, home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    assert "nothing to predict" in run.refused("predict", *home)


def test_text_that_is_no_text(run: Command, home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bytes that are not UTF-8: in an argument (Python's surrogates), on standard input, in JSON's escapes."""
    assert "Unicode" in run.refused("predict", *home, "caf\udce9")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"fine\ncaf\xe9\n"), encoding="utf-8"))
    assert "UTF-8" in run.refused("predict", *home)
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "half \\ud83d", "label": "warm"}\n' + '{"text": "fine", "label": "cold"}\n')
    assert "line 1" in run.refused("predict", *home, "--data", path)
    assert "line 1" in run.refused("train", *home, "--data", path)
    path.write_text('{"text": "fine", "label": "half \\ud83d"}\n' + '{"text": "fine", "label": "cold"}\n')
    assert "line 1" in run.refused("train", *home, "--data", path)


def test_a_store_that_cannot_be_one(run: Command, bundle: Path, data: Path, tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below", Path("/proc/edgelora")):
        message = run.refused("train", bundle, "--store", path, "--adapter", "home", "--data", data, *QUICK)
        assert str(path) in message


def test_an_adapter_of_another_base_is_refused(run: Command, home, damaged: Path, store: Path, data: Path):
    """The same graphs with another digest: whatever is asked, the adapter is not used."""
    edit_manifest(base_digest="0" * 64)(damaged)
    at = (damaged, "--store", store, "--adapter", "home")
    for arguments in (("predict", *at, "text"), ("eval", *at, "--data", data), ("train", *at, "--data", data)):
        assert "another base" in run.refused(*arguments)


def test_an_adapter_of_another_task_is_refused(run: Command, home, bundle_of, store: Path, data: Path):
    """The same base, so the same digest; but the head's rows mean other things."""
    for task in ("regression", "token-classification"):
        message = run.refused("predict", bundle_of(task), "--store", store, "--adapter", "home", "text")
        assert "does not fit" in message


def test_a_damaged_adapter_is_named_and_the_others_are_listed(
    run: Command, home, bundle: Path, store: Path, data: Path
):
    assert run("train", bundle, "--store", store, "--adapter", "other", "--data", data, *QUICK)[0] == 0
    tensors = store / "home" / "versions" / "000001" / "adapter_model.safetensors"
    tensors.write_bytes(flip(tensors.read_bytes()))
    assert "adapter_model.safetensors" in run.refused("predict", *home, "text")
    listed = run.json("adapters", bundle, "list", "--store", store)
    assert {"home", "other"} == {entry["name"] for entry in listed}
    assert run("predict", bundle, "--store", store, "--adapter", "other", "text")[0] == 0


@pytest.mark.parametrize("spoiled", ["absent", "empty", "a file", "not PEFT", "half"])
def test_importing_what_is_no_adapter(run: Command, home, bundle: Path, store: Path, tmp_path: Path, spoiled: str):
    folder = tmp_path / "incoming"
    if spoiled == "a file":
        folder.write_text("")
    elif spoiled != "absent":
        folder.mkdir()
    if spoiled == "not PEFT":
        (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
        (folder / "adapter_model.safetensors").write_bytes(b"")
    if spoiled == "half":
        assert run("export", *home, "-o", folder)[0] == 0
        tensors = folder / "adapter_model.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-10])
    assert "incoming" in run.refused("import", bundle, folder, "--store", store, "--adapter", "new")
    assert [entry["name"] for entry in run.json("adapters", bundle, "list", "--store", store)] == ["home"]


def test_exporting_to_where_nothing_can_be_written(run: Command, home, tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        assert str(path) in run.refused("export", *home, "-o", path)


def test_errors_in_json(run: Command, bundle: Path, store: Path):
    status, out, err = run("predict", bundle, "--store", store, "--adapter", "away", "text", "--json")
    assert status == 2
    body = json.loads(out)
    assert body["kind"] == "StoreError" and body["error"] in err


def test_other_settings_for_an_adapter_that_exists(run: Command, home, data: Path):
    message = run.refused("train", *home, "--data", data, "--rank", "3")
    assert "r 8 against 3" in message and "--restart" in message


def test_the_loss_diverges(run: Command, home, bundle: Path, store: Path, data: Path):
    message = run.refused("train", *home, "--data", data, "--lr", "1e30", "--max-grad-norm", "0", "--optim", "sgd")
    assert "diverged" in message and "learning rate" in message
    assert run.json("adapters", bundle, "show", "home", "--store", store)["current"] == 1


def test_a_full_disk_is_named(bundle: Path, data: Path, store: Path):
    """The real command with a limit on the size of files: smaller than the training state."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from edgelora.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = tiny.start_python("-c", code, "train", bundle, "--store", store, "--adapter", "a", "--data", data)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "Traceback" not in err and str(store) in err
    assert "space" in err or sys.platform == "win32"


def test_the_output_may_be_closed_early(bundle: Path):
    """`edgelora points … | head -1` ends quietly."""
    process = tiny.start_python(
        "-c", "import sys; from edgelora.cli import main; sys.exit(main(sys.argv[1:]))", "points", bundle
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.wait(60)
    assert process.stderr.read() == ""


def test_a_desktop_verb_says_what_to_install(bundle: Path, tmp_path: Path):
    code = (
        "import sys; sys.modules['onnx_ir'] = None; sys.modules['edgelora_tools'] = None;"
        "from edgelora.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = tiny.start_python("-c", code, "convert", "model.onnx", "-o", tmp_path / "x.edgelora")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert 'pip install "edgelora[convert]"' in err and "Traceback" not in err


def test_converting_what_is_no_model(run: Command, bundle: Path, tmp_path: Path):
    """Each names the source; an existing bundle is not overwritten unasked."""
    out = tmp_path / "out.edgelora"
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    (tmp_path / "empty").mkdir()
    for source in ("absent.onnx", "absent", "text.txt", "bad.onnx", "empty"):
        assert source in run.refused("convert", tmp_path / source, "-o", out)
    for source in ("no_such_module:factory", "json:no_such_factory", "recipe:no-such-recipe"):
        assert source.partition(":")[2] in run.refused("convert", source, "-o", out)
    assert not out.exists()


def test_a_bundle_that_exists_is_not_overwritten_unasked(run: Command, damaged: Path, tmp_path: Path):
    shutil.copy(damaged / "forward.onnx", tmp_path / "model.onnx")
    shutil.copy(damaged / "weights.bin", tmp_path / "weights.bin")
    before = {p.name: p.read_bytes() for p in damaged.iterdir()}
    run.refused("convert", tmp_path / "model.onnx", "-o", damaged, "--task", "feature-extraction")
    assert before == {p.name: p.read_bytes() for p in damaged.iterdir()}
