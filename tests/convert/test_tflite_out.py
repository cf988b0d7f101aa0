"""Adapters in the weights of TFLite files: what the interpreter makes of them, what stays, and what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import TopologicalSortPass

from edgelora.adapter import absent_adapter, new_adapter
from edgelora.bundle import Bundle
from edgelora.cli import main
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, ConversionError
from edgelora.manifest import InsertionPoint
from edgelora.methods import IA3Config
from edgelora.parity import parity_samples
from edgelora.probes import random_pair
from edgelora.runtime import Model
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.runner import open_session, sample_inputs
from edgelora_tools.sources import open_source
from tests.convert.bundles import relative, to_bundle
from tests.convert.memory import memory_below
from tests.convert.real_files import MEDIAPIPE, NMP, fetched, logits, photographs

pytest.importorskip("tflite", reason="needs the TFLite schema: edgelora[tflite]")
pytest.importorskip("ai_edge_litert", reason="needs TFLite's interpreter: edgelora[tflite]")

from edgelora_tools.interop.tflite_engine import InterpreterModel, difference
from edgelora_tools.interop.tflite_file import Constants, merged_file, save_file
from edgelora_tools.interop.tflite_weights import real_numbers
from edgelora_tools.methods.base import Change
from edgelora_tools.sources.tflite import interpreter, original_of
from edgelora_tools.sources.tflite.model import Graph, Operator, Sparsity, Tensor, read_model

FLOAT = ("ad01_fp32", "pretrainedResnet")
CODES = ("pretrainedResnet_quant", "ad01_int8", "kws_ref_model_float32")
PITCH, PITCH_POINTS = "nmp", "model_1.conv2d_5"


@pytest.fixture(scope="module")
def bundles(tiny, tmp_path_factory):
    """A function from a file's name to its bundle, made once, of all points that LoRA's change of weights can reach."""
    made: dict[str, Bundle] = {}

    def bundle(name: str) -> tuple[Bundle, Path]:
        path = basic_pitch() if name == PITCH else tiny / f"{name}.tflite"
        if name not in made:
            chosen = PITCH_POINTS if name == PITCH else None
            made[name] = to_bundle(path, tmp_path_factory.mktemp(name), target_modules=chosen, output=logits(path))
        return made[name], path

    return bundle


def basic_pitch() -> Path:
    return fetched("basic-pitch", "0.4.0", {"basic_pitch/saved_models/icassp_2022/nmp.tflite": NMP}, ".") / "nmp.tflite"


def random_feeds(bundle: Bundle, seed: int, size: float = 0.05) -> dict[str, np.ndarray]:
    """A LoRA adapter at every point that moves its weight by about `size` of it."""
    rng, feeds = np.random.default_rng(seed), absent_adapter(bundle.manifest)
    for point in bundle.manifest.points:
        a, b = random_pair(point, rng, int(rng.integers(1, 5)))
        feeds[point.input_a], feeds[point.input_b] = a, (size * b).astype(np.float32)
    return feeds


@pytest.mark.parametrize("name", [*FLOAT, *CODES])
def test_no_adapter_gives_the_original_bit_for_bit(name, bundles):
    bundle, path = bundles(name)
    feeds = random_feeds(bundle, 0)
    zeros = {n: np.zeros_like(x) if n.endswith("lora_B") else x for n, x in feeds.items()}
    for none in (absent_adapter(bundle.manifest), zeros):
        assert merged_file(bundle, "lora", none, path).content == path.read_bytes()


@pytest.mark.parametrize("name", FLOAT)
@given(seed=st.integers(0, 999))
@settings(max_examples=3)
def test_float_files_compute_what_the_bundle_does(name, seed, bundles):
    bundle, path = bundles(name)
    feeds = random_feeds(bundle, seed)
    merged = merged_file(bundle, "lora", feeds, path)
    assert set(merged.changed) == {p.id for p in bundle.manifest.points} and not merged.rescaled
    gap = difference(bundle, "lora", feeds, merged)
    assert gap is not None and gap <= 1e-5
    assert blank(merged.content) == blank(path.read_bytes())


@pytest.mark.parametrize("name", [*FLOAT, PITCH])
def test_float_files_come_in_again(name, bundles, tmp_path):
    """In, out with an adapter, in again: merged weights on both sides give what the interpreter does, within 1e-5.

    The bundle has its adapter beside the weights, and sums in another order, which basic-pitch makes larger.
    """
    bundle, path = bundles(name)
    out, adapter = tmp_path / "out.tflite", random_feeds(bundle, 1)
    save_file(merged_file(bundle, "lora", adapter, path), path, out)
    source = open_source(str(out)).reading(logits(out), False)
    feeds = sample_inputs(source.model, {"batch": 4}, np.random.default_rng(0))
    wanted, names = source.run(feeds), [y.name for y in bundle.manifest.outputs]
    with open_session(source.model) as session:
        again = dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))
    beside, base = (bundle.forward.run({**feeds, **x}) for x in (adapter, absent_adapter(bundle.manifest)))
    gaps = [max(np.abs(y[n] - wanted[n]).max() / np.abs(wanted[n]).max() for n in names) for y in (again, beside, base)]
    assert gaps[0] <= 1e-5
    assert gaps[1] <= (1e-5 if name in FLOAT else 2e-4)
    assert gaps[2] > 1e-2


def blank(content: bytes) -> bytes:
    """The file with zeros for the numbers and scales of its constants."""
    held = bytearray(content)
    for tensor in read_model(held, "blank").tensors:
        for part in (tensor.data, tensor.quantization and tensor.quantization.scale):
            if part is not None:
                part[...] = 0
    return bytes(held)


@pytest.mark.parametrize("name", CODES)
def test_files_in_codes_are_near_the_bundle(name, bundles):
    """As near as rounded weights allow, on inputs at random; the base is further."""
    bundle, path = bundles(name)
    feeds = random_feeds(bundle, 1, 0.2)
    merged = merged_file(bundle, "lora", feeds, path)
    assert merged.rescaled and blank(merged.content) == blank(path.read_bytes())
    gap = difference(bundle, "lora", feeds, merged)
    without = difference(bundle, "lora", feeds, merged_file(bundle, "lora", absent_adapter(bundle.manifest), path))
    assert gap is not None and without is not None and gap < min(0.25, without / 2)


@pytest.mark.parametrize(("name", "adapted"), [*product(["pretrainedResnet_quant", "ad01_int8"], [False, True])])
def test_files_in_codes_come_in_again(name, adapted, bundles, tmp_path):
    """In, out with or without an adapter, in again with every point: all outputs are the interpreter's very codes.

    On photographs, or on codes at random for the file that hears sounds; behind ResNet8's softmax too, where one step
    of a logit is eleven. The photographs are enough for products of real numbers to miss some.
    """
    bundle, path = bundles(name)
    feeds, out = random_feeds(bundle, 2, 0.1) if adapted else absent_adapter(bundle.manifest), tmp_path / "out.tflite"
    out.write_bytes(merged_file(bundle, "lora", feeds, path).content)
    source, graph = open_source(str(out)), read_model(out.read_bytes(), str(out))
    again = to_bundle(out, tmp_path, target_modules=None)
    if name == "ad01_int8":
        inputs = sample_inputs(source.model, {"batch": 400}, np.random.default_rng(0))
    else:
        inputs = {again.manifest.inputs[0].name: photographs(tmp_path / "signs", 32, 400)}
    made = again.forward.run({**inputs, **absent_adapter(again.manifest)})
    assert len(again.manifest.points) == 10
    for index, (output, wanted) in zip(graph.outputs, source.run(inputs).items(), strict=True):
        told = graph.tensors[index].quantization
        assert told is not None
        steps = np.rint((made[output].astype(np.float64) - wanted) / told.scale[0])
        assert not steps.any(), f"{np.count_nonzero(steps.any(-1))} of {len(steps)}, up to {np.abs(steps).max()} codes"


def test_weights_alone_in_codes_come_in_again(bundles, tmp_path):
    """In, out with an adapter, in again: rounded as the interpreter rounds them, activations give its very outputs.

    Its plain kernels, which run here for the sake of the logits, round what meets such weights by each sample's largest
    number. A code beside a middle may fall on the other side, rarely; without rounding no output is as near.
    """
    bundle, path = bundles("kws_ref_model_float32")
    out = tmp_path / "out.tflite"
    save_file(merged_file(bundle, "lora", random_feeds(bundle, 1, 0.2), path), path, out)
    source = open_source(str(out)).reading(logits(out), False)
    feeds = sample_inputs(source.model, {"batch": 16}, np.random.default_rng(0))
    wanted, name = source.run(feeds), str(logits(out))
    gaps = []
    for model in (source.model, with_rounded_activations(source.model)):
        with open_session(model) as session:
            (y,) = session.run([name], feeds)
        gaps.append(np.abs(np.asarray(y) - wanted[name]) / np.abs(wanted[name]).max())
    assert np.median(gaps[1]) < 1e-6 and gaps[1].max() < 0.05
    assert np.median(gaps[0]) > 1e-3 and gaps[0].max() < 0.1


def with_rounded_activations(model: ir.Model) -> ir.Model:
    """A translation with activations rounded to 127 parts of a sample's largest where they meet weights in codes."""
    model = model.clone()
    op = GraphBuilder(model.graph).op
    for node in list(model.graph):
        weight = node.inputs[1].producer() if node.op_type == "Conv" and node.inputs[1] is not None else None
        if weight is not None and weight.op_type == "DequantizeLinear":
            x = node.inputs[0]
            parts = op.Div(127.0, op.ReduceMax(op.Abs(x), op.Constant(value_ints=[1, 2, 3]), keepdims=1))
            node.replace_input_with(0, op.Div(op.Round(op.Mul(x, parts)), parts))
    TopologicalSortPass()(model)
    return model


def test_codes_are_within_a_step_of_what_is_merged(bundles):
    bundle, path = bundles("ad01_int8")
    feeds, graph = random_feeds(bundle, 1), read_model(path.read_bytes(), str(path))
    written = read_model(merged_file(bundle, "lora", feeds, path).content, "out")
    for point in bundle.manifest.points:
        index = bundle.manifest.source["tflite"]["weights"][f"{point.id}.weight"]
        wanted = real_numbers(graph.tensors[index]).T + feeds[point.input_a].astype(np.float64) @ feeds[point.input_b]
        told = written.tensors[index].quantization
        assert told is not None
        assert (np.abs(real_numbers(written.tensors[index]).T - wanted) < 1.01 * told.scale).all()


@pytest.mark.parametrize("name", ["ad01_fp32"])
def test_the_interpreter_as_an_engine(name, bundles, tmp_path):
    """By the name of a stored adapter, several in one call, and the base alone."""
    bundle, path = bundles(name)
    model = Model.open(bundle.path, tmp_path / "store")
    for person, seed in (("ann", 0), ("ben", 1)):
        model.store.save(person, with_random(bundle, seed))
    inputs = parity_samples(bundle)[1][0]
    rows = len(next(iter(inputs.values())))
    people = [("ann", "ben", None)[i % 3] for i in range(rows)]
    (output,) = model.outputs(inputs)
    ours, theirs = (m.outputs(inputs, adapters=people)[output] for m in (model, InterpreterModel(model, path)))
    assert relative(theirs, ours) <= 1e-5
    assert relative(theirs, model.outputs(inputs)[output]) > 1e-3


def with_random(bundle: Bundle, seed: int):
    """An adapter for the store with random tensors."""
    adapter = new_adapter(
        bundle.manifest, LoraConfig(r=2, lora_alpha=2, target_modules=tuple(p.id for p in bundle.manifest.points))
    )
    rng = np.random.default_rng(seed)
    drawn = {
        n: (0.1 * rng.standard_normal(x.shape) * x.shape[-1] ** -0.5).astype(np.float32)
        for n, x in adapter.tensors.items()
    }
    return adapter.with_tensors(drawn)


def test_the_engine_makes_a_heads_predictions(tiny, tmp_path):
    """The features from the interpreter, the head from the adapter; the export has no place for it."""
    path = tiny / "ad01_fp32.tflite"
    bundle = to_bundle(path, tmp_path, task="regression", pooling="pooler")
    adapter = new_adapter(bundle.manifest, LoraConfig(r=2, target_modules="all-linear"), outputs=3)
    model = Model.open(bundle.path, tmp_path / "store")
    inputs = parity_samples(bundle)[1][0]
    ours, theirs = (m.predict(inputs, adapter) for m in (model, InterpreterModel(model, path)))
    assert isinstance(ours, np.ndarray) and np.abs(ours - np.asarray(theirs)).max() <= 1e-5 * np.abs(ours).max()
    model.store.save("ann", adapter)
    command = ["export", str(bundle.path), "--store", str(tmp_path / "store"), "--adapter", "ann", "--to", "tflite"]
    assert main([*command, "--source", str(path), "-o", str(tmp_path / "x.tflite")]) == 2
    assert not (tmp_path / "x.tflite").exists()


def test_the_command_exports_and_the_file_runs(bundles, tmp_path, capsys):
    bundle, path = bundles("pretrainedResnet")
    model = Model.open(bundle.path, tmp_path / "store")
    model.store.save("ann", with_random(bundle, 0))
    out = tmp_path / "made" / "ann.tflite"
    at = ["--store", str(tmp_path / "store"), "--adapter", "ann"]
    command = ["export", str(bundle.path), *at, "--to", "tflite", "--source", str(path), "-o", str(out)]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["difference"] <= 1e-5 and len(told["changed"]) == len(bundle.manifest.points)
    inputs = parity_samples(bundle)[1][0]
    (name,) = model.outputs(inputs)
    ours = model.outputs(inputs, "ann")[name].astype(np.float64)
    theirs = original_of(out.read_bytes(), str(out), [name], False).run(inputs)[name]
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(ours).max()
    assert main([*command[:-1], str(path)]) == 2 and "is the original" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path)]) == 2 and "is a directory" in capsys.readouterr().err


def test_the_command_predicts_on_pictures_by_both_engines(tiny, tmp_path, capsys):
    """A head on features before the file's own classifier: the same answers from both."""
    images = pytest.importorskip("PIL.Image", reason="needs Pillow: edgelora[vision]")
    path, bundle = tiny / "pretrainedResnet.tflite", tmp_path / "out.edgelora"
    graph = read_model(path.read_bytes(), str(path))
    features = graph.tensors[graph.operators[-2].inputs[0]].name
    for label in ("dark", "light"):
        (tmp_path / "few" / label).mkdir(parents=True)
        for i in range(4):
            shade = np.random.default_rng(i).integers(0, 100, (32, 32, 3)) + 100 * (label == "light")
            images.fromarray(shade.astype(np.uint8)).save(tmp_path / "few" / label / f"{i}.png")
    chosen = [
        "--source-output",
        features,
        "--image-mean",
        "0",
        "--image-std",
        "1",
        "--target-modules",
        "model.conv2d_6",
    ]
    task = ["--task", "image-classification", "--pooling", "pooler", "--no-check"]
    assert main(["convert", str(path), "-o", str(bundle), *task, *chosen]) == 0
    assert main(["train", str(bundle), "--adapter", "ann", "--data", str(tmp_path / "few"), "--epochs", "2"]) == 0
    asked = ["predict", str(bundle), "--adapter", "ann", "--json", str(tmp_path / "few" / "dark" / "0.png")]
    capsys.readouterr()
    answers = []
    for engine in ([], ["--engine", "tflite", "--source", str(path)]):
        assert main([*asked, *engine]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] and answers[0][0]["label"] in ("dark", "light")
    assert main([*asked, "--engine", "tflite"]) == 2 and "go together" in capsys.readouterr().err


def test_what_is_not_the_source_is_refused(bundles, tiny, tmp_path):
    bundle, path = bundles("ad01_fp32")
    feeds = random_feeds(bundle, 0)
    other = tiny / "vww_96_float.tflite"
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(path.read_bytes()[:-1000])
    for wrong, says in (
        (other, "is not the file.*pass the one"),
        (tmp_path / "none.tflite", "cannot be read"),
        (cut, "cut.tflite"),
    ):
        with pytest.raises(ConversionError, match=says):
            merged_file(bundle, "lora", feeds, wrong)


def test_convolutions_in_depth_take_ia3_and_no_lora(tiny, tmp_path):
    """What IA³ makes of the kernel and the bias of a convolution in depth; a LoRA of it has no place."""
    path = tiny / "vww_96_float.tflite"
    names = [w.removesuffix(".weight") for w in open_source(str(path)).facts["tflite"]["weights"]]
    deep, plain = next(n for n in names if "depthwise" in n), names[2]
    bundle = to_bundle(path, tmp_path, target_modules=(deep, plain), methods=("ia3",), output=logits(path))
    adapter = new_adapter(bundle.manifest, IA3Config(target_modules=(deep, plain)))
    rng, neutral = np.random.default_rng(0), bundle.feeds(adapter)
    scales = {n: rng.uniform(0.5, 1.5, x.shape).astype(np.float32) for n, x in neutral.items() if ".ia3_" in n}
    merged = merged_file(bundle, "ia3", {**neutral, **scales}, path)
    gap = difference(bundle, "ia3", {**neutral, **scales}, merged)
    assert set(merged.changed) == {deep, plain} and gap is not None and gap <= 1e-5
    with pytest.raises(AdapterError, match=f"{deep}: its adapter reads all channels"):
        merged_file(bundle, "lora", random_feeds(bundle, 0), path)


METHODS = ("dora", "bitfit", "full", "lora-bias")


@pytest.fixture(scope="module")
def with_methods(tiny, tmp_path_factory):
    """The autoencoder's bundle, with graphs for other methods."""
    path = tiny / "ad01_fp32.tflite"
    return to_bundle(path, tmp_path_factory.mktemp("methods"), methods=METHODS), path


@pytest.mark.parametrize("method", METHODS)
def test_other_changes_of_weights_and_biases(method, with_methods):
    """Every input of the method's graphs at random, near the base's own values where it stands for these."""
    bundle, path = with_methods
    rng, inputs = np.random.default_rng(0), bundle.manifest.methods[method].inputs
    own = bundle.values([x.name for x in inputs if x.neutral is None])
    feeds = {}
    for x in inputs:
        shape = tuple(size if isinstance(size, int) else 2 for size in x.shape)
        noise = rng.standard_normal(own[x.name].shape if x.neutral is None else shape).astype(np.float32)
        base = own[x.name] if x.neutral is None else np.float32(x.neutral)
        feeds[x.name] = base + np.float32(0.1) * noise * np.float32(noise.shape[0] ** -0.5 if noise.ndim > 1 else 1.0)
    merged = merged_file(bundle, method, feeds, path)
    gap = difference(bundle, method, feeds, merged)
    assert len(merged.changed) == len(bundle.manifest.points) and gap is not None and gap <= 1e-5


def test_without_an_interpreter(with_methods, tmp_path, monkeypatch, capsys):
    """An export goes without the comparison, and says so; a conversion asks for it before its work, an engine too."""
    bundle, path = with_methods
    monkeypatch.setattr(interpreter, "_PACKAGES", ("no_such_interpreter",))
    feeds = random_feeds(bundle, 0)
    assert difference(bundle, "lora", feeds, merged_file(bundle, "lora", feeds, path)) is None
    model = InterpreterModel(Model.open(bundle.path), path)
    with pytest.raises(ConversionError, match=r"ai-edge-litert.*edgelora\[tflite\]"):
        model.outputs(parity_samples(bundle)[0][0])
    with pytest.raises(ConversionError, match=r"ai-edge-litert or tflite-runtime.*edgelora\[tflite\]"):
        open_source(str(path))
    store, out = tmp_path / "store", tmp_path / "ann.tflite"
    Model.open(bundle.path, store).store.save("ann", with_random(bundle, 0))
    command = ["export", str(bundle.path), "--store", str(store), "--adapter", "ann", "--to", "tflite"]
    assert main([*command, "--source", str(path), "-o", str(out)]) == 0
    assert "not compared with the bundle: there is no TFLite interpreter" in capsys.readouterr().err
    assert out.exists()


def test_half_precision(tmp_path):
    """Weights in float16 behind a DEQUANTIZE: no adapter leaves the file as it is, one is rounded to halves."""
    member = "face_detection/face_detection_short_range"
    package = {f"mediapipe/modules/{m}.tflite": sha256 for m, sha256 in MEDIAPIPE.items()}
    path = fetched("mediapipe", "0.10.21", package, ".") / f"{Path(member).name}.tflite"
    names = [w.removesuffix(".weight") for w in open_source(str(path)).facts["tflite"]["weights"]]
    bundle = to_bundle(path, tmp_path, target_modules=tuple(names[-4:]))
    feeds = random_feeds(bundle, 0, 0.2)
    merged, absent = merged_file(bundle, "lora", feeds, path), absent_adapter(bundle.manifest)
    plain = merged_file(bundle, "lora", absent, path)
    assert len(merged.changed) == 4 and plain.content == path.read_bytes()
    gap, without = difference(bundle, "lora", feeds, merged), difference(bundle, "lora", feeds, plain)
    assert gap is not None and without is not None and gap < 1e-3 < without and 10 * gap < without


W, X, Y = (4, 3), (1, 3), (1, 4)
KERNEL = np.arange(12, dtype=np.float32).reshape(W)


def float_tensor(name: str, shape, data=None, sparsity=None) -> Tensor:
    return Tensor(name, shape, False, np.dtype(np.float32), data, None, sparsity)


@pytest.mark.parametrize(
    ("stored", "more", "says"),
    [
        (KERNEL, [Operator("ADD", (0, 1), (3,))], "others read its weight too"),
        (KERNEL, [Operator("FULLY_CONNECTED", (0, 1, 4), (3,))], "several biases"),
        (None, [Operator("DENSIFY", (5,), (1,))], "stored sparse"),
        (None, [Operator("ADD", (0, 0), (1,))], "computed in the file"),
    ],
    ids=["another reader", "another bias", "sparse", "computed"],
)
def test_weights_without_a_place_are_refused_by_name(stored, more, says):
    sparse = Sparsity((0, 1), (), (4, 3))
    tensors = (
        float_tensor("x", X), float_tensor("w", W, stored), float_tensor("y", Y), float_tensor("z", Y),
        float_tensor("b", (4,), np.zeros(4, np.float32)), float_tensor("s", W, KERNEL.reshape(-1), sparse),
    )  # fmt: skip
    graph = Graph(tensors, (*more, Operator("FULLY_CONNECTED", (0, 1), (2,))), (0,), (2,), 1000)
    point = InsertionPoint("dense", "Gemm", 3, 4)
    with pytest.raises(AdapterError, match=says):
        Constants(graph, {"dense.weight": 1}).edits(point, Change(weight=lambda w: w + 1))


def test_tensors_in_the_same_bytes_are_not_written():
    both = [float_tensor(name, W, KERNEL.copy()) for name in ("w", "v")]
    tensors = (float_tensor("x", X), both[0], float_tensor("y", Y), replace(both[1], data=both[0].data))
    graph = Graph(tensors, (Operator("FULLY_CONNECTED", (0, 1), (2,)),), (0,), (2,), 1000)
    constants = Constants(graph, {"dense.weight": 1})
    edits = constants.edits(InsertionPoint("dense", "Gemm", 3, 4), Change(weight=lambda w: w + 1))
    assert constants.shared(edits) == ["the tensors 'w' and 'v' lie in the same bytes"]


@given(data=st.data())
@settings(max_examples=30)
def test_damaged_files_are_refused_by_name_or_written_as_they_are(data, bundles, tmp_path_factory):
    """Also where the bundle takes them for its source: an error of ours, or a file that differs in constants alone."""
    bundle, path = bundles("pretrainedResnet_quant")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        low = data.draw(st.sampled_from([0, len(content) - 12_000]))
        content[data.draw(st.integers(low, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path_factory.mktemp("damaged") / "model.tflite"
    damaged.write_bytes(content)
    with suppress(ConversionError):
        told = {**bundle.manifest.source["tflite"], "sha256": read_model(bytes(content), "x").sha256}
        manifest = replace(bundle.manifest, source={**bundle.manifest.source, "tflite": told})
        believing = Bundle(bundle.path, manifest, bundle.settings)
        with memory_below(64 << 20):
            try:
                merged = merged_file(believing, "lora", random_feeds(bundle, 0), damaged)
            except (AdapterError, ConversionError) as error:
                assert str(damaged) in str(error)
            else:
                assert blank(merged.content) == blank(bytes(content))
