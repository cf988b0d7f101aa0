"""The base with an adapter in its weights as a plain model: what it computes, what it holds, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from edgelora.adapter import Adapter, absent_adapter, new_adapter
from edgelora.bundle import Bundle
from edgelora.cli import main
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, ConversionError
from edgelora.methods import BeftConfig, IA3Config
from edgelora.onnx_adapter import write_onnx_adapter
from edgelora.runtime import Model
from edgelora_tools import ladders
from edgelora_tools.interop import plain_onnx
from edgelora_tools.interop.merging import Merged, merge, unmerge
from edgelora_tools.interop.plain_onnx import save_plain, with_adapter_inputs
from edgelora_tools.passes.quantize import Rung
from tests.convert.bundles import to_bundle
from tests.convert.networks import FLOAT, WIDTH, Net, tokens_of

LABELS = ("a", "b", "c")


def adapter_of(bundle: Bundle, **config: Any) -> Adapter:
    """Random values, of about the size of the weights."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6} | config
    adapter = new_adapter(bundle.manifest, LoraConfig(**settings), LABELS if bundle.manifest.head is not None else None)
    rng = np.random.default_rng(3)
    drawn = {n: rng.standard_normal(t.shape).astype(np.float32) * np.float32(0.3) for n, t in adapter.tensors.items()}
    return adapter.with_tensors(drawn)


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [y.name for y in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i, str(path.parent)) for i in onnx.load(path).graph.initializer}


def assert_plain(path: Path, bundle: Bundle, domains: tuple[str, ...] = ("",)) -> None:
    """A valid model whose inputs are the source's, with no words of ours."""
    model = onnx.load(path)
    if domains == ("",):
        onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == [spec.name for spec in bundle.manifest.inputs]
    assert [o.name for o in model.graph.output] == [spec.name for spec in bundle.manifest.outputs]
    assert sorted({o.domain for o in model.opset_import if o.domain != "ai.onnx"}) == sorted(domains)
    assert not model.metadata_props and not model.functions and not any(n.metadata_props for n in model.graph.node)
    assert b"edgelora" not in model.SerializeToString().lower()


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, y in wanted.items():
        np.testing.assert_allclose(got[name], y, rtol=1e-5, atol=1e-5 * float(np.abs(y).max()))


@pytest.mark.parametrize("external", [False, True])
def test_a_transformer_with_a_head(task_bundle, tmp_path: Path, external: bool):
    bundle = task_bundle("sequence-classification")
    adapter = adapter_of(bundle, target_modules=("value", "down"), rank_pattern={"down": 2}, use_rslora=True)
    merged = merge(bundle, adapter)
    assert not merged.beside and len(merged.originals) == 2
    files = save_plain(merged.model, tmp_path / "plain.onnx", external)
    assert [f.name for f in files] == ["plain.onnx", *(["plain.onnx.data"] if external else [])]
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in files)
    assert_plain(tmp_path / "plain.onnx", bundle)
    assert [d.dim_value for d in onnx.load(files[0]).graph.output[0].type.tensor_type.shape.dim][-1] == len(LABELS)
    feeds = tokens_of(3, 7)
    wanted = bundle.forward.run({**feeds, **adapter.feeds(bundle.manifest)})
    assert_same(run(files[0], feeds), wanted)
    head = {n: adapter.tensors[n] for n in ("classifier.weight", "classifier.bias")}
    base = bundle.forward.run({**feeds, **absent_adapter(bundle.manifest), **head})
    assert np.abs(wanted["logits"] - base["logits"]).max() > 1e-2

    save_plain(unmerge(merged), tmp_path / "back.onnx")
    ours, back = initializers(bundle.path / "forward.onnx"), initializers(tmp_path / "back.onnx")
    assert back.keys() - ours.keys() == set(head)
    assert all(np.array_equal(ours[name], back[name]) for name in ours)
    np.testing.assert_array_equal(run(tmp_path / "back.onnx", feeds)["logits"], base["logits"])


def test_the_base_alone_is_the_base_bit_for_bit(task_bundle, tmp_path: Path):
    bundle = task_bundle("feature-extraction")
    merged = merge(bundle, None)
    save_plain(merged.model, tmp_path / "base.onnx")
    assert_plain(tmp_path / "base.onnx", bundle)
    ours, base = initializers(bundle.path / "forward.onnx"), initializers(tmp_path / "base.onnx")
    assert ours.keys() == base.keys() and all(np.array_equal(ours[n], base[n]) for n in ours)
    feeds = tokens_of(2, 5)
    for name, y in bundle.forward.run({**feeds, **absent_adapter(bundle.manifest)}).items():
        np.testing.assert_array_equal(run(tmp_path / "base.onnx", feeds)[name], y)


def images() -> onnx.ModelProto:
    net = Net(21)
    x = net(
        "Conv", "x", net.weight("stem.weight", 4, 3, 3, 3), net.weight("stem.bias", 4), strides=[2, 2], pads=[1] * 4
    )
    x = net("Conv", net("Tanh", x), net.weight("grouped.weight", 6, 2, 1, 3), group=2, pads=[0, 1, 0, 1])
    net.output(net("Conv", x, net.weight("point.weight", 5, 6, 1, 1)), "y")
    return net.model([("x", FLOAT, ["batch", 3, 8, 6])], [("y", FLOAT, None)], check=False)


def test_convolutions_and_one_in_groups_which_stays_beside(tmp_path: Path):
    bundle = to_bundle(images(), tmp_path, target_modules=".*")
    adapter = adapter_of(bundle)
    merged = merge(bundle, adapter)
    assert merged.beside == ("grouped",)
    assert sorted(merged.originals) == ["point.weight", "stem.weight"]
    save_plain(merged.model, tmp_path / "plain.onnx")
    assert_plain(tmp_path / "plain.onnx", bundle)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 6)).astype(np.float32)}
    assert_same(run(tmp_path / "plain.onnx", feeds), bundle.forward.run({**feeds, **adapter.feeds(bundle.manifest)}))
    save_plain(unmerge(merged), tmp_path / "back.onnx")
    assert not any("lora" in name for name in initializers(tmp_path / "back.onnx"))
    base = bundle.forward.run({**feeds, **absent_adapter(bundle.manifest)})["y"]
    np.testing.assert_array_equal(run(tmp_path / "back.onnx", feeds)["y"], base)


def small() -> onnx.ModelProto:
    """Two products of which the second has no bias."""
    net = Net(21)
    hidden = net("Tanh", net.linear("x", "first", 32, 32))
    net.output(net("MatMul", hidden, net.weight("second.weight", 32, 8)), "y")
    return net.model([("x", FLOAT, ["batch", 32])], [("y", FLOAT, None)], check=False)


def moved(bundle: Bundle, config: Any) -> Adapter:
    """An adapter of another method, away from its first values."""
    adapter, rng = new_adapter(bundle.manifest, config), np.random.default_rng(3)
    drawn = {n: t + rng.normal(0, 0.3, t.shape).astype(np.float32) for n, t in adapter.tensors.items()}
    return adapter.with_tensors(drawn)


def computed(bundle: Bundle, adapter: Adapter, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return bundle.forward_in(adapter.method.graphs).run({**feeds, **bundle.feeds(adapter)})


def assert_merges(bundle: Bundle, adapter: Adapter, feeds: dict[str, np.ndarray], folder: Path) -> Merged:
    """What is merged computes what the adapter does, and the way back gives the bytes of the base alone."""
    merged = merge(bundle, adapter)
    save_plain(merged.model, folder / "plain.onnx")
    wanted, base = computed(bundle, adapter, feeds), bundle.forward.run({**feeds, **absent_adapter(bundle.manifest)})
    assert_same(run(folder / "plain.onnx", feeds), wanted)
    assert all(np.abs(wanted[name] - base[name]).max() > 1e-2 for name in wanted)
    save_plain(unmerge(merged), folder / "back.onnx")
    save_plain(merge(bundle, None).model, folder / "base.onnx")
    assert (folder / "back.onnx").read_bytes() == (folder / "base.onnx").read_bytes()
    return merged


@pytest.mark.parametrize("into", [None, ".*"])
def test_vectors_of_channels_go_into_kernels_also_of_groups(tmp_path: Path, into: str | None):
    bundle = to_bundle(images(), tmp_path, target_modules=".*", methods=("ia3",))
    adapter = moved(bundle, IA3Config(feedforward_modules=into))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 6)).astype(np.float32)}
    assert not assert_merges(bundle, adapter, feeds, tmp_path).beside


def test_a_bias_of_its_own_for_a_product_without_one(tmp_path: Path):
    bundle = to_bundle(small(), tmp_path, methods=("bitfit",))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    merged = assert_merges(bundle, moved(bundle, BeftConfig()), feeds, tmp_path)
    assert not merged.beside and list(merged.originals) == ["first.bias"]
    assert len(merged.sums) == 1


def test_over_codes_a_bias_stays_beside_and_other_methods_are_refused_by_name(tmp_path: Path):
    bundle = to_bundle(small(), tmp_path, quantize="int8", methods=("bitfit", "ia3"))
    integer = [p.id for p in bundle.manifest.points if p.id not in bundle.manifest.source["float32"]]
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    assert list(assert_merges(bundle, moved(bundle, BeftConfig()), feeds, tmp_path).beside) == integer
    with pytest.raises(AdapterError, match=f"the weights at {', '.join(integer)} cannot take the ia3 adapter: .* peft"):
        merge(bundle, moved(bundle, IA3Config()))


def shared() -> onnx.ModelProto:
    """A module that is called twice, and an embedding whose matrix is also the last product's."""
    net = Net(21)
    net.weight("embedding.weight", WIDTH, WIDTH)
    net.weight("twice.weight", WIDTH, WIDTH)
    x = net("Gather", "embedding.weight", "ids")
    for _ in range(2):
        x = net("Tanh", net("MatMul", x, "twice.weight"))
    net.output(net("MatMul", x, "embedding.weight"), "y")
    return net.model([("ids", TensorProto.INT64, ["batch", "length"])], [("y", FLOAT, None)], check=False)


def test_weights_with_other_readers_stay_for_them(tmp_path: Path):
    bundle = to_bundle(shared(), tmp_path)
    adapter = adapter_of(bundle)
    assert adapter.points == ("twice", "embedding")
    merged = merge(bundle, adapter)
    assert not merged.beside and sorted(merged.originals) == ["embedding.weight.embedding", "twice.weight"]
    save_plain(merged.model, tmp_path / "plain.onnx")
    assert_plain(tmp_path / "plain.onnx", bundle)
    feeds = {"ids": np.random.default_rng(0).integers(0, WIDTH, (2, 5))}
    assert_same(run(tmp_path / "plain.onnx", feeds), bundle.forward.run({**feeds, **adapter.feeds(bundle.manifest)}))


def observed() -> onnx.ModelProto:
    """A product whose output is also an output of the model."""
    net = Net(21)
    z = net.rename(net("MatMul", "x", net.weight("first.weight", WIDTH, WIDTH)), "z")
    net.output(net("MatMul", net("Tanh", z), net.weight("second.weight", WIDTH, WIDTH)), "y")
    outputs: list[Any] = [("z", FLOAT, ["batch", WIDTH]), ("y", FLOAT, ["batch", WIDTH])]
    return net.model([("x", FLOAT, ["batch", WIDTH])], outputs, check=False)


def test_outputs_keep_their_names(tmp_path: Path):
    bundle = to_bundle(observed(), tmp_path)
    adapter = adapter_of(bundle)
    save_plain(merge(bundle, adapter).model, tmp_path / "plain.onnx")
    assert_plain(tmp_path / "plain.onnx", bundle)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
    assert_same(run(tmp_path / "plain.onnx", feeds), bundle.forward.run({**feeds, **adapter.feeds(bundle.manifest)}))


def test_an_int8_base_keeps_its_codes_and_the_adapter_stays_beside(tmp_path: Path):
    net = Net(21)
    hidden = net("Tanh", net("MatMul", "x", net.weight("first.weight", 32, 32)))
    net.output(net("MatMul", hidden, net.weight("second.weight", 32, 8)), "y")
    source = net.model([("x", FLOAT, ["batch", 32])], [("y", FLOAT, None)], check=False)
    bundle = to_bundle(source, tmp_path, quantize="int8")
    integer = [p.id for p in bundle.manifest.points if p.id not in bundle.manifest.source["float32"]]
    assert integer
    adapter = adapter_of(bundle)
    merged = merge(bundle, adapter)
    assert list(merged.beside) == integer
    save_plain(merged.model, tmp_path / "plain.onnx")
    assert_plain(tmp_path / "plain.onnx", bundle, ("", "com.microsoft"))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    assert_same(run(tmp_path / "plain.onnx", feeds), bundle.forward.run({**feeds, **adapter.feeds(bundle.manifest)}))
    assert {str(t.dtype) for t in initializers(tmp_path / "plain.onnx").values()} & {"int8", "uint8"}


def test_codes_of_8_bits_become_unsigned_which_are_exact_on_every_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A program that runs a plain model does not know that signed ones need a session entry on some processors."""
    net = Net(21)
    hidden = net("Tanh", net("MatMul", "x", net.weight("first.weight", 32, 32)))
    net.output(net("MatMul", hidden, net.weight("second.weight", 32, 8)), "y")
    source = net.model([("x", FLOAT, ["batch", 32])], [("y", FLOAT, None)], check=False)
    monkeypatch.setitem(ladders.RUNGS, "int8", (Rung.ROWS_8,))
    bundle = to_bundle(source, tmp_path, quantize="int8")
    assert largest_signed(bundle.path / "forward.onnx") == 127
    adapter = adapter_of(bundle)
    merged = merge(bundle, adapter)
    save_plain(merged.model, tmp_path / "plain.onnx")
    save_plain(unmerge(merged), tmp_path / "back.onnx")
    save_plain(merge(bundle, None).model, tmp_path / "base.onnx")
    save_plain(with_adapter_inputs(bundle), tmp_path / "open.onnx")
    assert all(largest_signed(tmp_path / f"{name}.onnx") <= 64 for name in ("plain", "back", "base", "open"))
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "base.onnx").read_bytes()
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    base = bundle.forward.run({**feeds, **absent_adapter(bundle.manifest)})
    for name in ("base", "open"):
        np.testing.assert_array_equal(run(tmp_path / f"{name}.onnx", feeds)["y"], base["y"])
    assert_same(run(tmp_path / "plain.onnx", feeds), bundle.forward.run({**feeds, **adapter.feeds(bundle.manifest)}))


def largest_signed(path: Path) -> int:
    """The largest code of the weights that products of bytes take signed."""
    values = initializers(path)
    nodes = [n for n in onnx.load(path, load_external_data=False).graph.node if n.op_type == "MatMulIntegerToFloat"]
    assert nodes
    weights = [values[n.input[1]].astype(int) for n in nodes if values[n.input[1]].dtype == np.int8]
    return max((int(np.abs(w).max()) for w in weights), default=0)


def test_a_large_models_weights_lie_beside_it(task_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plain_onnx, "INLINE_LIMIT", 1000)
    bundle = task_bundle("feature-extraction")
    files = save_plain(merge(bundle, None).model, tmp_path / "base.onnx")
    assert [f.name for f in files] == ["base.onnx", "base.onnx.data"]
    assert files[0].stat().st_size < files[1].stat().st_size
    run(files[0], tokens_of(1, 3))


def test_an_onnx_adapter_is_active_through_pythons_own_call(task_bundle, tmp_path: Path):
    bundle = task_bundle("sequence-classification")
    adapter = adapter_of(bundle, target_modules=("value", "down"))
    write_onnx_adapter(adapter, bundle.manifest, tmp_path / "a.onnx_adapter")
    save_plain(with_adapter_inputs(bundle), tmp_path / "open.onnx")
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 3
    session = ort.InferenceSession(str(tmp_path / "open.onnx"), quiet, providers=["CPUExecutionProvider"])
    active, options = ort.LoraAdapter(), ort.RunOptions()
    active.Load(str(tmp_path / "a.onnx_adapter"))
    options.add_active_adapter(active)
    feeds = tokens_of(3, 7)
    ours = bundle.forward.run({**feeds, **adapter.feeds(bundle.manifest)})["logits"]
    np.testing.assert_array_equal(session.run(["logits"], feeds, options)[0], ours)
    assert np.asarray(session.run(["logits"], feeds)[0]).shape == (3, 0)


def test_what_cannot_be_written_is_refused_before_anything_is(task_bundle, tmp_path: Path):
    bundle = task_bundle("sequence-classification")
    with pytest.raises(AdapterError, match="needs a head"):
        merge(bundle, None)
    other = task_bundle("feature-extraction")
    with pytest.raises(AdapterError, match="does not fit"):
        merge(other, adapter_of(bundle))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConversionError, match="is a directory"):
        save_plain(merge(other, None).model, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == [] and len(list(tmp_path.iterdir())) == 1


def test_the_command(task_bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = task_bundle("feature-extraction")
    model = Model.open(bundle.path, tmp_path / "store")
    model.store.save("home", adapter_of(bundle))
    path = tmp_path / "home.onnx"
    command = ["export", str(bundle.path), "--store", str(tmp_path / "store"), "--json"]
    assert main([*command, "--adapter", "home", "--to", "onnx", "-o", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "adapter": "home",
        "path": str(path),
        "files": [str(path)],
        "beside": [],
    }
    feeds = tokens_of(2, 4)
    assert_same(run(path, feeds), model.outputs(feeds, adapter="home"))
    assert main([*command, "--to", "onnx", "-o", str(tmp_path / "base.onnx"), "--external-data"]) == 0
    assert (tmp_path / "base.onnx.data").is_file()
    assert main([*command, "--to", "onnx", "-o", str(tmp_path / "open.onnx"), "--adapter-inputs"]) == 0
    for wrong, message in (
        (["--to", "peft"], "needs --adapter"),
        (["--adapter", "home", "--external-data"], "is for --to onnx and --to genai"),
        (["--adapter", "home", "--to", "peft", "--adapter-inputs"], "is for --to onnx"),
        (["--adapter", "home", "--to", "onnx", "--adapter-inputs"], "leave --adapter out"),
    ):
        capsys.readouterr()
        assert main([*command, *wrong, "-o", str(tmp_path / "wrong")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
