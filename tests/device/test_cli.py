"""The command line: every error of the user's is a message and status 2, every --json parses, every help works."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelora.cli import main
from tests.device import tiny

VERBS = (
    "convert points info check bench demo train eval predict adapters export import rules".split()  # noqa: SIM905
)
QUICK = ("--epochs", "2", "--batch-size", "8", "--lr", "0.02")


class Command:
    """`edgelora …` in this process: status, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self.capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        out, err = self.capsys.readouterr()
        return status, out, err

    def json(self, *arguments: str | Path) -> Any:
        """What a successful command prints as JSON, strictly read."""
        status, out, err = self(*arguments, "--json")
        assert status == 0, err
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    def refused(self, *arguments: str | Path) -> str:
        """The message of an error of the user's."""
        status, out, err = self(*arguments)
        assert status == 2, (status, out, err)
        assert "Traceback" not in err
        assert err.strip()
        return err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def home(run: Command, bundle: Path, store: Path, data: Path) -> tuple[str | Path, ...]:
    """Options that name a trained adapter: BUNDLE --store DIR --adapter NAME."""
    options = (bundle, "--store", store, "--adapter", "home")
    assert run("train", *options, "--data", data, *QUICK)[0] == 0
    return options


# --- what works -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_json(run: Command, verb: str):
    status, out, _ = run(verb, "--help")
    assert status == 0
    assert "example:" in out and f"edgelora {verb}" in out and "--json" in out


def test_the_command_itself_has_help_and_names_the_verbs(run: Command):
    status, out, _ = run("--help")
    assert status == 0
    assert all(verb in out for verb in VERBS)


def test_train_reports_in_json(run: Command, bundle: Path, store: Path, data: Path):
    report = run.json("train", bundle, "--store", store, "--adapter", "home", "--data", data, *QUICK)
    assert (report["adapter"], report["version"], report["steps"]) == ("home", 1, 6)
    assert report["labels"] == ["bright", "quiet", "warm"]
    assert len(report["history"]) == 2
    again = run.json("train", bundle, "--store", store, "--adapter", "home", "--data", data, *QUICK)
    assert again["already_done"]


def test_eval_and_predict_in_json(run: Command, home, data: Path):
    measured = run.json("eval", *home, "--data", data)
    assert measured["samples"] == 24
    assert 0 <= measured["accuracy"] <= 1
    (one,) = run.json("predict", *home, "turn the light up")
    assert one["text"] == "turn the light up"
    assert one["label"] in ("bright", "quiet", "warm")
    assert 1 / 3 <= one["score"] <= 1
    texts = [row["text"] for row in tiny.commands()]
    rows = run.json("predict", *home, *texts)
    share = np.mean([r["label"] == row["label"] for r, row in zip(rows, tiny.commands(), strict=True)])
    assert share == pytest.approx(measured["accuracy"])


def test_predict_reads_files_and_standard_input(run: Command, home, data: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(run.json("predict", *home, "--data", data)) == 24
    lines = io.TextIOWrapper(io.BytesIO("the lamp\n\nthe hall é\n".encode()), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    assert [r["text"] for r in run.json("predict", *home)] == ["the lamp", "the hall é"]


def test_train_reads_standard_input(run: Command, bundle: Path, store: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("train", bundle, "--store", store, "--data", "-", *QUICK)
    text = "".join(json.dumps(row) + "\n" for row in tiny.commands())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run.json(*options, "--adapter", "lines")["steps"] == 6
    text = "label,text\n" + "".join(f'{row["label"]},"{row["text"]}"\n' for row in tiny.commands())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run.json(*options, "--adapter", "table", "--format", "csv")["steps"] == 6


def test_the_store_in_json(run: Command, home, bundle: Path, store: Path, data: Path):
    assert run("train", *home, "--data", data, *QUICK, "--again")[0] == 0
    verb = ("adapters", bundle)
    at = ("--store", store)
    (listed,) = run.json(*verb, "list", *at)
    assert (listed["name"], listed["current"], len(listed["versions"])) == ("home", 2, 2)
    assert run.json(*verb, "show", "home", *at) == listed
    assert run.json(*verb, "rollback", "home", *at) == {"adapter": "home", "version": 1}
    assert run.json(*verb, "rollback", "home", "--version", "2", *at)["version"] == 2
    assert run.json(*verb, "remove", "home", *at) == {"removed": "home"}
    assert run.json(*verb, "list", *at) == []


def test_an_exported_adapter_is_imported_as_it_was(run: Command, home, bundle: Path, store: Path, tmp_path: Path):
    folder = tmp_path / "peft"
    assert run.json("export", *home, "-o", folder)["path"] == str(folder)
    assert run.json("import", bundle, folder, "--store", store, "--adapter", "copy")["version"] == 1
    texts = [row["text"] for row in tiny.commands()]
    copied = ("predict", bundle, "--store", store, "--adapter", "copy", *texts)
    assert run.json(*copied) == run.json("predict", *home, *texts)


def test_bundle_verbs_in_json(run: Command, bundle: Path, damaged: Path):
    points = run.json("points", bundle, "--rank", "3")
    assert points["rank"] == 3
    assert points["parameters"] == sum(p["parameters"] for p in points["points"])
    assert points["points"][0]["parameters"] == 3 * (32 + 32)
    assert run.json("info", bundle)["task"] == "sequence-classification"
    verdict = run.json("check", damaged)  # stores its verdict: not in the bundle that all tests share
    assert verdict["passed"]
    assert {p["id"] for p in points["points"]} <= {p["id"] for p in verdict["points"]}
    assert run.json("info", damaged)["verification"]["passed"]


@pytest.mark.parametrize("verb", ["points", "info", "train", "predict"])
def test_texts_for_people(run: Command, home, bundle: Path, data: Path, verb: str):
    arguments = {"train": (*home, "--data", data, *QUICK), "predict": (*home, "the lamp")}.get(verb, (bundle,))
    status, out, _ = run(verb, *arguments)
    assert status == 0
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)
    assert len(out.splitlines()) > (0 if verb == "train" else 1)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("fly",), ("train",), ("predict",), ("adapters", "x", "grow")])
def test_a_command_that_is_none_is_refused(run: Command, arguments: tuple[str, ...]):
    run.refused(*arguments)


@pytest.mark.parametrize(
    "verb", ["points", "info", "check", "train", "eval", "predict", "adapters", "export", "import"]
)
@pytest.mark.parametrize("kind", ["absent", "a file", "an empty folder"])
def test_a_missing_bundle_is_named(run: Command, tmp_path: Path, data: Path, verb: str, kind: str):
    path = tmp_path / "missing.edgelora"
    if kind == "a file":
        path.write_text("{}")
    elif kind == "an empty folder":
        path.mkdir()
    rest: dict[str, tuple[Any, ...]] = {
        "train": ("--adapter", "a", "--data", data),
        "eval": ("--adapter", "a", "--data", data),
        "predict": ("--adapter", "a", "text"),
        "adapters": ("list",),
        "export": ("--adapter", "a", "-o", tmp_path / "out"),
        "import": (tmp_path, "--adapter", "a"),
    }
    assert "missing.edgelora" in run.refused(verb, path, *rest.get(verb, ()))


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoiled(bundle: Path) -> None:
        (bundle / name).write_bytes(change((bundle / name).read_bytes()))

    return spoiled


def edit_manifest(**changed: Any) -> Callable[[Path], None]:
    return spoil("bundle.json", lambda content: json.dumps(json.loads(content) | changed).encode())


def list_file(name: str) -> Callable[[Path], None]:
    """The manifest lists one file more."""

    def change(content: bytes) -> bytes:
        body = json.loads(content)
        body["files"][name] = {"size": 1, "sha256": ""}
        return json.dumps(body).encode()

    return spoil("bundle.json", change)


TEXT = {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 8, "pad_id": 0}


def flip(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (spoil("weights.bin", flip), "weights.bin"),
        (spoil("weights.bin", lambda content: content[:-1]), "weights.bin"),
        (spoil("forward.onnx", flip), "forward.onnx"),
        (spoil("tokenizer.json", flip), "tokenizer.json"),
        (lambda bundle: (bundle / "forward.onnx").unlink(), "forward.onnx"),
        (spoil("bundle.json", lambda content: content[: len(content) // 2]), "JSON"),
        (spoil("bundle.json", lambda content: b""), "bundle.json"),
        (spoil("bundle.json", lambda content: b"\xff\xfe" + content), "bundle.json"),
        (spoil("bundle.json", lambda content: b"[" * 100_000), "bundle.json"),
        (spoil("bundle.json", lambda content: b"[]"), "bundle.json"),
        (edit_manifest(format_version="2.0"), "2.0"),
        (edit_manifest(format_version=None), "format"),
        (edit_manifest(format="something-else"), "bundle"),
        (list_file("../weights.bin"), "plain file name"),
        (list_file("/etc/passwd"), "plain file name"),
        (list_file("absent.txt"), "absent.txt"),
        (edit_manifest(points=[{"id": "x"}]), r"points\[0\] has no op"),
        (edit_manifest(points=None), "points must be"),
        (edit_manifest(files=[]), "files must be"),
        (edit_manifest(files={}), "files does not list forward.onnx"),
        (edit_manifest(training="x"), "training must be"),
        (edit_manifest(head={"name": 1}), "head has no features"),
        (edit_manifest(head={"name": 1, "features": 32, "per": "sequence"}), "head.name must be str"),
        (edit_manifest(base_parameters=True), "base_parameters must be int"),
        (edit_manifest(preprocessing=None), "preprocessing must be"),
        (edit_manifest(preprocessing={"kind": "text"}), "preprocessing.tokenizer"),
        (edit_manifest(preprocessing=TEXT | {"tokenizer": "../x"}), r"\.\./x"),
        (edit_manifest(preprocessing=TEXT | {"max_length": "x"}), "max_length"),
        (edit_manifest(preprocessing=TEXT | {"max_length": 0}), "max_length"),
        (edit_manifest(preprocessing=TEXT | {"pad_id": -1}), "pad_id"),
        (edit_manifest(forward="absent.onnx"), "absent.onnx"),
        (edit_manifest(forward="../forward.onnx"), r"\.\./forward.onnx"),
        (edit_manifest(outputs=[]), "outputs"),
    ],
)
def test_a_damaged_bundle_is_named(run: Command, damaged: Path, home, spoiled, said: str):
    spoiled(damaged)
    message = run.refused("predict", damaged, *home[1:], "make the room warm")
    assert re.search(said, message), message
    assert "copy.edgelora" in message


def test_a_later_minor_version_is_read(run: Command, damaged: Path):
    edit_manifest(format_version="1.9", something_new={"x": 1})(damaged)
    assert run.json("info", damaged)["name"] == "tiny"


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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no samples"),
        ("\n\n", "no samples"),
        ('{"text": "a", "label": "x"}\n{"text": "b"\n', "line 2"),
        ('{"text": "a", "label": "x"}\n[1]\n', "line 2"),
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', "line 2.*label"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n', "line 2.*label"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": [1]}\n', "line 2.*label"),
        ('{"text": "a", "label": "x"}\n{"text": 5, "label": "y"}\n', "line 2.*text"),
        ('{"text": "a", "label": "x"}\n{"text": "  ", "label": "y"}\n', "line 2.*blank"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', "needs 2 or more"),
    ],
)
def test_bad_data_is_named_and_nothing_is_trained(
    run: Command, bundle: Path, store: Path, tmp_path: Path, content: str, said: str
):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    message = run.refused("train", bundle, "--store", store, "--adapter", "home", "--data", path)
    assert re.search(said, message), message
    assert run.json("adapters", bundle, "list", "--store", store) == []


def test_data_that_cannot_be_read(run: Command, bundle: Path, store: Path, tmp_path: Path):
    base = ("train", bundle, "--store", store, "--adapter", "home", "--data")
    assert "absent.jsonl" in run.refused(*base, tmp_path / "absent.jsonl")
    assert "cannot be read" in run.refused(*base, tmp_path, "--format", "csv")
    (tmp_path / "data.xyz").write_text("text,label\n")
    assert "--format" in run.refused(*base, tmp_path / "data.xyz")


def test_labels_that_the_adapter_does_not_know(run: Command, home, tmp_path: Path):
    path = tmp_path / "test.csv"
    path.write_text("text,label\nthe lamp,warm\nthe hall,frozen\n")
    message = run.refused("eval", *home, "--data", path)
    assert "frozen" in message and "bright, quiet, warm" in message


BAD_OPTIONS = [
    ("--rank", "0"),
    ("--rank", "-3"),
    ("--rank", "1000000000"),
    ("--rank", "many"),
    ("--lora-alpha", "0"),
    ("--lora-alpha", "nan"),
    ("--lora-dropout", "1"),
    ("--lora-dropout", "-0.1"),
    ("--target-modules", "quary"),
    ("--target-modules", "re:("),
    ("--target-modules", "re:nothing"),
    ("--exclude-modules", "nothing"),
    ("--exclude-modules", "query", "value", "dense"),
    ("--layers-to-transform", "7"),
    ("--rank-pattern", "query"),
    ("--rank-pattern", "query=two"),
    ("--rank-pattern", "query=0"),
    ("--rank-pattern", "query=2.5"),
    ("--rank-pattern", "query=inf"),
    ("--rank-pattern", "query=nan"),
    ("--alpha-pattern", "query=-1"),
    ("--alpha-pattern", "query=nan"),
    ("--epochs", "0"),
    ("--epochs", "1.5"),
    ("--max-steps", "0"),
    ("--batch-size", "0"),
    ("--batch-size", "-1"),
    ("--micro-batch-size", "0"),
    ("--learning-rate", "0"),
    ("--learning-rate", "nan"),
    ("--learning-rate", "inf"),
    ("--optim", "lion"),
    ("--weight-decay", "-1"),
    ("--weight-decay", "inf"),
    ("--momentum", "1"),
    ("--schedule", "square"),
    ("--warmup-steps", "-1"),
    ("--warmup-ratio", "2"),
    ("--max-grad-norm", "-1"),
    ("--max-grad-norm", "nan"),
    ("--class-weight", "heavy"),
    ("--loss", "hinge"),
    ("--loss", "cotangent"),
    ("--temperature", "0"),
    ("--margin", "nan"),
    ("--patience", "0", "--validation-split", "0.5"),
    ("--patience", "2"),
    ("--seed", "-1"),
    ("--seed", "x"),
    ("--save-steps", "0"),
    ("--validation-split", "1.5"),
    ("--validation-split", "-0.5"),
    ("--validation-split", "nan"),
    ("--validation", "absent.jsonl"),
    ("--keep", "worst"),
    ("--threads", "-1"),
    ("--threads", "0"),
    ("--unknown-option",),
]


@pytest.mark.parametrize("option", BAD_OPTIONS, ids=" ".join)
def test_a_bad_option_value_is_refused_before_anything_is_trained(
    run: Command, bundle: Path, store: Path, data: Path, option: tuple[str, ...]
):
    message = run.refused("train", bundle, "--store", store, "--adapter", "home", "--data", data, *option)
    words = {w for part in option for w in part.replace("=", " ").split()} | {option[0].removeprefix("--")}
    name = option[0].removeprefix("--").replace("-", "_")
    assert name in message.replace("-", "_") or any(w in message for w in words), message
    assert run.json("adapters", bundle, "list", "--store", store) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("points", "--rank", "0"),
        ("points", "--rank", "-1"),
        ("bench", "--batch-size", "0"),
        ("bench", "--length", "0"),
        ("bench", "--rank", "0"),
        ("bench", "--steps", "0"),
        ("check", "--inputs", "absent.npz"),
        ("check", "--source", "absent.onnx"),
        ("check", "--inputs", "absent.npz", "--source", "absent.onnx"),
    ],
    ids=" ".join,
)
def test_bad_options_of_the_bundle_verbs(run: Command, bundle: Path, arguments: tuple[str, ...]):
    run.refused(arguments[0], bundle, *arguments[1:])


@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_bad_batch_size_of_eval(run: Command, home, data: Path, size: str):
    assert "batch_size" in run.refused("eval", *home, "--data", data, f"--batch-size={size}")


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
    import sys

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
