"""The device stands alone: what it imports, and that it works where the desktop's packages are not."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device import tiny

DEVICE = tiny.ROOT / "edgelora"
EVERYWHERE = {"numpy", "safetensors", "edgelora"}
ONLY_IN = {
    "onnxruntime": {"session.py"},
    "tokenizers": {"text.py"},
    "jinja2": {"chat.py"},
    "cryptography": {"sealing.py"},
    "PIL": {"images.py", "placement.py", "drawing.py", "contact_sheet.py"},
}
REFUSED = ("onnx", "onnx_ir", "onnxscript", "torch", "transformers", "peft", "edgelora_tools", "rich", "matplotlib")

BLOCKED = f"""
import sys


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refusing())
"""

WHOLE_LIFE = """
import json, sys
import edgelora as el

bundle, store, data = sys.argv[1:-1]
model = el.Model.open(bundle, store)
samples = el.read_samples(data, model.bundle.manifest.task)
config = el.TrainingConfig(num_train_epochs=3, batch_size=8, learning_rate=2e-2)
other = [type(s)(s.text, s.label.upper()) for s in samples]
for name, own in (("one", samples), ("two", other)):
    el.train(model, name, own, validation=own[::3], lora=el.LoraConfig(r=4, lora_dropout=0.1), config=config)
text = [s.text for s in samples]
print(json.dumps({
    "one": model.predict(text, adapter="one"),
    "two": model.predict(text, adapter="two"),
    "mixed": model.predict(text[:2], adapters=["one", "two"]),
    "loaded": sorted(set(sys.argv[-1].split()) & set(sys.modules)),
}))
"""


def imports(path: Path) -> Iterator[str]:
    """The packages that a file imports, wherever in it, by `import`, `from` or importlib."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("path", sorted(DEVICE.rglob("*.py")), ids=lambda path: str(path.relative_to(DEVICE)))
def test_the_device_imports_only_what_it_installs(path: Path):
    for package in imports(path):
        if package in sys.stdlib_module_names or package in EVERYWHERE:
            continue
        assert path.name in ONLY_IN.get(package, ()), f"{path.name} imports {package}"


def test_the_desktop_is_entered_at_one_place():
    """Modules by name: one function of the device does so, for the verbs of the desktop."""
    users = [p.name for p in sorted(DEVICE.rglob("*.py")) if "import_module" in p.read_text(encoding="utf-8")]
    assert users == ["common.py"]


def run(code: str, *arguments: str | Path) -> tuple[int, str, str]:
    process = tiny.start_python("-c", BLOCKED + code, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands())


def test_a_bundle_trains_predicts_and_switches_without_the_desktop(bundle: Path, data: Path, tmp_path: Path):
    status, out, err = run(WHOLE_LIFE, bundle, tmp_path / "store", data, " ".join(REFUSED))
    assert status == 0, err
    answers = json.loads(out)
    assert answers["loaded"] == []
    assert set(answers["one"]) <= {"bright", "quiet", "warm"}
    assert set(answers["two"]) <= {"BRIGHT", "QUIET", "WARM"}
    assert answers["mixed"] == [answers["one"][0], answers["two"][1]]


COMMAND = "import sys\nfrom edgelora.cli import main\nsys.exit(main(sys.argv[1:]))"


def test_the_command_works_without_the_desktop(bundle: Path, data: Path, tmp_path: Path):
    at = ("--store", tmp_path / "store", "--adapter", "home")
    status, _, err = run(COMMAND, "train", bundle, *at, "--data", data, "--epochs", "2")
    assert status == 0, err
    status, out, err = run(COMMAND, "eval", bundle, *at, "--data", data, "--json")
    assert status == 0, err
    assert json.loads(out)["samples"] == 24
    status, _, err = run(COMMAND, "info", bundle)
    assert status == 0, err


@pytest.mark.parametrize("verb", ["convert", "demo"])
def test_the_desktops_verbs_say_what_to_install(tmp_path: Path, verb: str):
    arguments = {"convert": ("model.onnx", "-o", tmp_path / "x.edgelora"), "demo": ("-o", tmp_path / "demo")}[verb]
    status, _, err = run(COMMAND, verb, *arguments)
    assert status == 2
    assert 'pip install "edgelora[' in err and "Traceback" not in err


def test_the_desktop_itself_says_what_a_source_needs(tmp_path: Path):
    """edgelora[convert] without edgelora[torch]: a Hugging Face directory names the extra."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    code = COMMAND.replace("import sys\n", "import sys\nsys.meta_path.pop(0)\nsys.modules['torch'] = None\n", 1)
    status, _, err = run(code, "convert", folder, "-o", tmp_path / "x.edgelora")
    assert status == 2
    assert 'pip install "edgelora[torch]"' in err and "Traceback" not in err


def test_importing_the_device_leaves_no_trace_at_home(tmp_path: Path):
    """No telemetry file, no cache: the home folder is as empty after a session as before."""
    home = tmp_path / "home"
    home.mkdir()
    code = f"import os; os.environ['HOME'] = {str(home)!r}\nimport edgelora, onnxruntime"
    status, _, err = run(code)
    assert status == 0, err
    assert list(home.rglob("*")) == []
