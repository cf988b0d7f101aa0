"""`.onnx_adapter`: written for and read from ONNX Runtime's own classes, and fed by them to the inference graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest

from edgelora.adapter import Adapter, absent_adapter, new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError
from edgelora.onnx_adapter import model_version, read_onnx_adapter, write_onnx_adapter
from tests.device.command import Command
from tests.test_peft_exchange import lora_of, randomized_adapter

TEXTS = ["make it warm", "turn the light up now please", "stop"]
QUERY = "encoder.layer.0.attention.self.query"


def some_adapter(bundle: Path) -> Adapter:
    """Other ranks and alphas at several points, none at others."""
    config = LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=("query", "0.attention.self.value", "1.output.dense"),
        rank_pattern={QUERY: 5},
        alpha_pattern={"1.output.dense": 2},
    )
    return randomized_adapter(new_adapter(Bundle.open(bundle).manifest, config, ("a", "b", "c")))


def native_run(session: Any, outputs: list[str], feeds: Any, options: Any) -> Any:
    """The run of C, C++ and C#: Python's wrapper first asks for every input, also for those that an adapter feeds."""
    return session._sess.run(outputs, dict(feeds), options)


def parameters(path: Path) -> dict[str, np.ndarray]:
    return {
        n: v.numpy().copy() for n, v in ort.AdapterFormat.read_adapter(cast("Any", str(path))).get_parameters().items()
    }


def write(path: Path, content: dict[str, np.ndarray], version: int) -> Path:
    made = ort.AdapterFormat()
    made.set_model_version(version)
    made.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in content.items()})
    made.export_adapter(cast("Any", str(path)))
    return path


def test_onnx_runtime_feeds_the_file_to_the_inference_graph(
    bundle: Path, open_model: Callable[..., Any], tmp_path: Path
):
    model, adapter = open_model(), some_adapter(bundle)
    write_onnx_adapter(adapter, model.bundle.manifest, tmp_path / "a.onnx_adapter")
    feeds = model.encode(TEXTS)
    session = ort.InferenceSession(str(bundle / "forward.onnx"), providers=["CPUExecutionProvider"])
    loaded, options = ort.LoraAdapter(), ort.RunOptions()
    loaded.Load(str(tmp_path / "a.onnx_adapter"))
    options.add_active_adapter(loaded)
    (theirs,) = native_run(session, ["logits"], feeds, options)
    ours = model.bundle.forward.run({**feeds, **adapter.feeds(model.bundle.manifest)})["logits"]
    np.testing.assert_array_equal(theirs, ours)
    head = {n: adapter.tensors[n] for n in ("classifier.weight", "classifier.bias")}
    base = model.bundle.forward.run({**feeds, **absent_adapter(model.bundle.manifest), **head})["logits"]
    assert np.abs(ours - base).max() > 0.1


def test_reading_gives_an_adapter_that_computes_the_same_bits(
    bundle: Path, open_model: Callable[..., Any], tmp_path: Path
):
    model, adapter = open_model(), some_adapter(bundle)
    manifest, path = model.bundle.manifest, tmp_path / "a.onnx_adapter"
    write_onnx_adapter(adapter, manifest, path)
    back = read_onnx_adapter(path, manifest)
    assert sorted(back.points) == sorted(adapter.points)
    assert [lora_of(back).rank(p) for p in adapter.points] == [lora_of(adapter).rank(p) for p in adapter.points]
    assert {lora_of(back).scale(p) for p in adapter.points} == {1.0}
    np.testing.assert_array_equal(
        model.outputs(TEXTS, adapter=back)["logits"], model.outputs(TEXTS, adapter=adapter)["logits"]
    )
    write_onnx_adapter(back, manifest, tmp_path / "b.onnx_adapter")
    assert (tmp_path / "b.onnx_adapter").read_bytes() == path.read_bytes()


def test_another_programs_file(bundle: Path, tmp_path: Path):
    """Half precision, only some of the points, a version of its own."""
    manifest = Bundle.open(bundle).manifest
    point = manifest.point(QUERY)
    rng = np.random.default_rng(0)
    content = {
        point.input_a: rng.standard_normal(point.shape_a(2)).astype(np.float16),
        point.input_b: rng.standard_normal(point.shape_b(2)).astype(np.float32),
    }
    path = write(tmp_path / "theirs.onnx_adapter", content, 1)
    with pytest.raises(AdapterError, match=r"model_version 1, .*--accept-base"):
        read_onnx_adapter(path, manifest)
    adapter = read_onnx_adapter(path, manifest, accept_base=True)
    assert adapter.points == (QUERY,)
    np.testing.assert_array_equal(adapter.tensors[point.input_a], content[point.input_a].astype(np.float32))


def test_another_base_or_task_has_another_version(bundle: Path, tmp_path: Path):
    manifest = Bundle.open(bundle).manifest
    write_onnx_adapter(some_adapter(bundle), manifest, tmp_path / "a.onnx_adapter")
    for other in (replace(manifest, base_digest="12" * 32), replace(manifest, task="token-classification")):
        with pytest.raises(AdapterError, match="does not say that it belongs to this base and task"):
            read_onnx_adapter(tmp_path / "a.onnx_adapter", other)


@pytest.mark.parametrize("spoil", ["nan", "shape", "half", "unknown", "type", "cut", "flipped", "missing", "flat"])
def test_what_does_not_fit_is_refused_by_name(bundle: Path, tmp_path: Path, spoil: str):
    manifest, path = Bundle.open(bundle).manifest, tmp_path / "a.onnx_adapter"
    write_onnx_adapter(some_adapter(bundle), manifest, path)
    content, name = parameters(path), f"{QUERY}.lora_A"
    message = name
    if spoil == "nan":
        content[name][0, 0] = np.nan
    elif spoil == "shape":
        content[name] = content[name][:-1].copy()
    elif spoil == "half":
        del content[name]
        message = f"{QUERY} has lora_B and no lora_A"
    elif spoil == "unknown":
        content["elsewhere.lora_A"], message = content[name], "elsewhere.lora_A is no input"
    elif spoil == "type":
        content[name], message = content[name].astype(np.float64), f"{name} is float64"
    elif spoil == "flat":
        content[name] = content[name].reshape(-1)
    if spoil in ("cut", "flipped", "missing"):
        raw = bytearray(path.read_bytes())
        raw[:8] = raw[:8] if spoil == "cut" else b"\xff" * 4 + b"TORT"
        path.write_bytes(raw[: len(raw) // 2] if spoil == "cut" else raw)
        if spoil == "missing":
            path.unlink()
        message = "cannot be read" if spoil == "missing" else "no complete .onnx_adapter file"
    else:
        write(path, content, model_version(manifest))
    with pytest.raises(AdapterError, match=message):
        read_onnx_adapter(path, manifest)


def test_a_convolutions_adapter(tmp_path: Path):
    from tests.test_convolution_adapters import network, to_bundle

    bundle = to_bundle(*network("images"), tmp_path)
    adapter = randomized_adapter(new_adapter(bundle.manifest, LoraConfig(r=4, rank_pattern={"grouped": 8})))
    path = tmp_path / "a.onnx_adapter"
    write_onnx_adapter(adapter, bundle.manifest, path)
    back = read_onnx_adapter(path, bundle.manifest)
    assert lora_of(back).rank("grouped") == 8 and lora_of(back).rank("head") == 4
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32)
    feeds = [{"x": x, **a.feeds(bundle.manifest)} for a in (adapter, back)]
    np.testing.assert_array_equal(*(bundle.forward.run(f)["y"] for f in feeds))


def test_the_commands(run: Command, bundle: Path, open_model: Callable[..., Any], tmp_path: Path):
    model, store = open_model(), ("--store", tmp_path / "store")
    model.store.save("home", some_adapter(bundle))
    path = tmp_path / "new" / "home.onnx_adapter"
    command = ("export", bundle, *store, "--adapter", "home", "--to", "onnx_adapter", "-o", path)
    assert run.json(*command) == {"adapter": "home", "path": str(path)}
    assert "for --to peft" in run.refused(*command, "--prefix", "bert")
    assert run.json("import", bundle, path, *store, "--adapter", "copy", "--labels", "a", "b", "c")["version"] == 1
    wanted = model.outputs(TEXTS, adapter="home")["logits"]
    np.testing.assert_array_equal(model.outputs(TEXTS, adapter="copy")["logits"], wanted)
    assert model.predict(TEXTS, adapter="copy") == model.predict(TEXTS, adapter="home")
    plain = tmp_path / "model.onnx"
    plain.write_bytes((bundle / "forward.onnx").read_bytes())
    assert "neither an .onnx_adapter file nor a directory" in run.refused(
        "import", bundle, plain, *store, "--adapter", "x"
    )
    assert "cannot be written" in run.refused(*command[:-1], bundle / "bundle.json" / "x")
    assert [entry["name"] for entry in run.json("adapters", bundle, "list", *store)] == ["copy", "home"]
