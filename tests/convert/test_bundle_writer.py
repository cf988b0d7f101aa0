"""What lies in a bundle: each weight once, small graphs, the same bytes every time; written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgelora.bundle import Bundle
from edgelora.cli.main import main
from edgelora.errors import BundleError, ConversionError
from edgelora_tools import bundle_writer
from edgelora_tools.bundle_writer import PAGE, base_digest
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources import open_source
from tests.convert import networks
from tests.convert.bundles import run_python, to_bundle
from tests.convert.networks import FLOAT, Net, save


def content(bundle):
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def external(bundle, file):
    """name -> (offset, length) of what a graph keeps in weights.bin."""
    places = {}
    for tensor in onnx.load(bundle / file, load_external_data=False).graph.initializer:
        if tensor.external_data:
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == "weights.bin"
            places[tensor.name] = (int(entry["offset"]), int(entry["length"]))
    return places


@pytest.fixture(scope="session")
def wide_file(tmp_path_factory):
    """Weights of 64 KiB and more, one of them used by two modules under two names, one by two nodes."""
    net = Net(17)
    same = net.rng.standard_normal((256, 256)).astype(np.float32) / 16
    net.weights |= {"a.weight": same, "b.weight": same.copy()}
    net.weight("c.weight", 256, 1200)
    net.weight("shared.weight", 1200, 1200)
    x = net("Tanh", net("MatMul", net("Tanh", net("MatMul", "x", "a.weight")), "b.weight"))
    x = net("Tanh", net("MatMul", net("Tanh", net("MatMul", x, "c.weight")), "shared.weight"))
    net.output(net("MatMul", x, "shared.weight"), "y")
    model = net.model([("x", FLOAT, ["batch", 256])], [("y", FLOAT, ["batch", 1200])])
    return save(model, tmp_path_factory.mktemp("wide"))


def test_weights_lie_once_and_aligned(wide_file, tmp_path):
    bundle = to_bundle(wide_file, tmp_path, task="regression", pooling="pooler").path
    files = [path.name for path in bundle.glob("*.onnx")]
    assert len(files) == 7
    places = {file: external(bundle, file) for file in files}
    values = places.pop("values.onnx")
    assert values["a.base_weight"] == places["forward.onnx"]["a.weight"]
    assert set(values.values()) == set(places["forward.onnx"].values())
    for place in places.values():
        assert place["a.weight"] == place["b.weight"]
        assert all(offset % PAGE == 0 for offset, _ in place.values())
        assert {n: place[n] for n in place} == {n: places["forward.onnx"][n] for n in place}
    ends = [offset + length for offset, length in places["forward.onnx"].values()]
    weights = 4 * (256 * 256 + 256 * 1200 + 1200 * 1200)
    assert max(ends) == (bundle / "weights.bin").stat().st_size
    assert weights <= max(ends) < weights + 4 * 65536
    assert all((bundle / file).stat().st_size < 50_000 for file in files)
    data = (bundle / "weights.bin").read_bytes()
    offset, length = places["forward.onnx"]["c.weight"]
    original = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(wide_file).graph.initializer}
    assert data[offset : offset + length] == original["c.weight"].tobytes()


def test_the_same_bytes_every_time(transformer_file, tmp_path):
    """Also in other processes with other hash seeds, from which the order of sets follows."""
    script = (
        "import sys; from edgelora.cli.main import main\n"
        f"sys.exit(main(['convert', {str(transformer_file)!r}, '-o', sys.argv[1], '--task', 'sentence-embedding', "
        "'--target-modules', 'all-linear', '--no-check']))"
    )
    for seed in ("1", "2"):
        done = run_python(script, tmp_path, f"{seed}.edgelora", PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
    one, two = (content(tmp_path / f"{seed}.edgelora") for seed in ("1", "2"))
    assert one == two


def test_every_file_is_in_the_manifest(bundle_copy):
    bundle = bundle_copy()
    manifest = json.loads((bundle / "bundle.json").read_text())
    files = content(bundle)
    files.pop("bundle.json")
    assert manifest["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    assert bundle.stat().st_mode & 0o777 == 0o755


def model_of(**weights):
    values = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.FLOAT))
        for name, array in weights.items()
    ]
    return ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 21}), ir_version=10)


@pytest.mark.parametrize("size", [2, 100])
def test_digest_is_of_the_weights(size):
    a, b = np.random.default_rng(0).standard_normal((2, size, size)).astype(np.float32)
    digest = base_digest(model_of(a=a, b=b))
    assert base_digest(model_of(b=a, a=b)) == digest
    assert base_digest(model_of(c=b, d=a)) == digest
    altered = a.copy()
    altered[-1, -1] += 1e-6
    others = [
        model_of(a=altered, b=b),
        model_of(a=a),
        model_of(a=a, b=b, c=b),
        model_of(a=a.reshape(-1), b=b),
        model_of(a=a.view(np.int32), b=b),
        model_of(a=a.T.copy(), b=b),
    ]
    digests = [base_digest(model) for model in others]
    assert digest not in digests
    assert len(set(digests)) == len(others)


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "feature-extraction"])
def test_digest_of_small_networks_and_of_every_task(task, transformer_file, task_bundle, tmp_path):
    """An adapter says against which base it was trained: the task does not change it, one bias does."""
    assert task_bundle(task).manifest.base_digest == task_bundle("regression").manifest.base_digest
    net = networks.encoder(17)
    net.weights["encoder.layer.0.up.bias"][3] += np.float32(1e-3)
    model = net.model(networks.tokens(), [networks.HIDDEN, networks.POOLED])
    other = to_bundle(model, tmp_path, task=task)
    assert other.manifest.base_digest != task_bundle(task).manifest.base_digest
    assert other.manifest.base_parameters == task_bundle(task).manifest.base_parameters
    weights = [a for a in net.weights.values() if a.dtype == np.float32 and a.size > 1]
    assert other.manifest.base_parameters == sum(a.size for a in weights)


def test_overwriting_is_asked_for(bundle_copy, transformer_file, capsys):
    bundle = bundle_copy()
    before = content(bundle)
    command = ["convert", str(transformer_file), "-o", str(bundle), "--task", "regression", "--no-check"]
    assert main(command) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["convert", "nowhere.onnx", *command[2:]]) == 2
    assert "add --overwrite" in capsys.readouterr().err, "said before the source is read"
    assert content(bundle) == before
    assert main([*command, "--overwrite"]) == 0
    assert Bundle.open(bundle).manifest.task == "regression"
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_what_is_no_bundle_is_never_overwritten(transformer_file, tmp_path, capsys):
    folder, file = tmp_path / "photos", tmp_path / "letter"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(b"1")
    file.write_text("dear")
    for there in (folder, file):
        assert main(["convert", str(transformer_file), "-o", str(there), "--overwrite"]) == 2
        assert "is not a bundle" in capsys.readouterr().err
    assert (folder / "one.jpg").read_bytes() == b"1"
    assert file.read_text() == "dear"


def test_a_failed_conversion_leaves_the_old_bundle(bundle_copy, transformer_file, tmp_path, monkeypatch):
    bundle = bundle_copy()
    before = content(bundle)
    command = ["convert", str(transformer_file), "-o", str(bundle), "--overwrite", "--no-check"]
    assert main([*command, "--target-modules", "nothing"]) == 2
    assert content(bundle) == before

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bundle_writer, "_write_samples", full)
        assert main(command) == 2
    renames = []

    def second_rename_fails(a, b):
        renames.append(a)
        if len(renames) == 2:
            raise OSError(5, "Input/output error")
        return a.replace(b)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_rename_fails)
        assert main(command) == 2
    assert len(renames) == 3
    assert content(bundle) == before
    assert [p.name for p in tmp_path.iterdir()] == [bundle.name]


def test_a_place_that_cannot_be_written(transformer_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConversionError, match="could not be written"):
        convert(
            open_source(str(transformer_file)),
            tmp_path / "file" / "out.edgelora",
            ConvertOptions(task="feature-extraction"),
        )


_KILLED_WRITER = """
import os, sys
from pathlib import Path
import edgelora_tools.compile as compiler
from edgelora.bundle import Bundle
from edgelora.cli.main import main

calls, write = [], compiler.write_bundle
compiler.write_bundle = lambda *arguments: calls.append(arguments) or arguments[1]
assert main(["convert", *sys.argv[1:], "--no-check"]) == 0
destination = calls[0][0]

def writer_killed_at(count):
    def hook(event, told):
        nonlocal count
        writes = event == "open" and told[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"):
            count -= 1
            if count == 0:
                os._exit(9)
    sys.addaudithook(hook)
    write(*calls[0])
    os._exit(0)

step, status, seen = 0, 9, []
while status == 9:
    step += 1
    if os.fork() == 0:
        writer_killed_at(step)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    aside = [path / destination.name for path in destination.parent.glob(".*") if (path / destination.name).exists()]
    place = destination if destination.exists() else aside[0]
    seen.append(("" if place is destination else "aside ") + Bundle.open(place).manifest.task)
    if place is not destination:
        place.rename(destination)
assert status == 0, status
print(*seen, sep="\\n")
"""


def test_a_kill_at_any_step_of_writing_leaves_a_whole_bundle(tmp_path):
    """Killed before each operation on the file system in turn: the old bundle or the new one is there, and whole.

    Between the two renames the old one lies beside its place.
    """
    pooled = {"pooling": "pooler"}
    bundle = to_bundle(networks.perceptron(), tmp_path, task="sequence-classification", **pooled).path
    arguments = [str(tmp_path / "out.onnx"), "-o", str(bundle), "--overwrite", "--task", "regression"]
    done = run_python(_KILLED_WRITER, tmp_path, *arguments, "--pooling", "pooler")
    assert done.returncode == 0, done.stderr
    seen = [line for line in done.stdout.splitlines() if line.endswith(("classification", "regression"))]
    assert len(seen) > 20
    assert seen[0] == "sequence-classification"
    assert seen.count("aside sequence-classification") == 1
    assert seen[-1] == "regression"


def test_damage_is_named(bundle_copy):
    bundle = bundle_copy()
    weights = bundle / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    (bundle / "forward.onnx").unlink()
    with pytest.raises(BundleError, match=r"forward\.onnx: No such file[\s\S]*weights\.bin does not have the sha256"):
        Bundle.open(bundle)


@pytest.mark.parametrize("field", ["forward", "training"])
@pytest.mark.parametrize("trick", ["../{name}", "/etc/passwd", "sub/{name}", "..", ""])
def test_file_names_stay_in_the_bundle(field, trick, bundle_copy, capsys):
    """A graph by a name that leaves the folder, listed among the files or not."""
    bundle = bundle_copy()
    manifest = json.loads((bundle / "bundle.json").read_text())
    for listed in (False, True):
        name = trick.format(name="forward.onnx")
        altered = json.loads(json.dumps(manifest))
        if field == "forward":
            altered["forward"] = name
        else:
            altered["training"][0]["file"] = name
        if listed:
            altered["files"][name] = altered["files"]["forward.onnx"]
        (bundle / "bundle.json").write_text(json.dumps(altered))
        with pytest.raises(BundleError):
            Bundle.open(bundle, verify=False)
        assert main(["check", str(bundle)]) == 2
        assert "edgelora: " in capsys.readouterr().err


def test_a_manifest_cut_anywhere(bundle_copy):
    bundle = bundle_copy()
    text = (bundle / "bundle.json").read_text()
    for end in [0, 1, *range(100, len(text) - 2, 997)]:
        (bundle / "bundle.json").write_text(text[:end])
        with pytest.raises(BundleError):
            Bundle.open(bundle)


def test_a_weights_file_of_another_bundle(bundle_copy, wide_file, tmp_path):
    """The right form, the wrong content: only the digest tells."""
    bundle = bundle_copy()
    size = (bundle / "weights.bin").stat().st_size
    (bundle / "weights.bin").write_bytes(b"\0" * size)
    with pytest.raises(BundleError, match="sha256"):
        Bundle.open(bundle)
