"""TFLite files: each agrees with TFLite's interpreter, and those of MLPerf Tiny train."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.errors import ConversionError
from edgelora.gradient_checks import check_point, rounds_activations
from edgelora.media.images import ImageSettings
from edgelora.parity import PARITY_TOLERANCE, differences, parity_samples, parity_tolerance
from edgelora.probes import random_pair
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.graphs import specs
from edgelora_tools.measure_shapes import batch_name
from edgelora_tools.preprocessing import preprocessing_of
from edgelora_tools.runner import open_session, sample_inputs
from edgelora_tools.sources import open_source
from tests.convert.bundles import ROOT
from tests.convert.memory import memory_below
from tests.convert.real_files import MEDIAPIPE, NMP, fetched, logits

pytest.importorskip("tflite", reason="needs the TFLite schema: edgelora[tflite]")
pytest.importorskip("ai_edge_litert", reason="needs TFLite's interpreter: edgelora[tflite]")

from edgelora_tools.sources.tflite.operators import TRANSLATIONS

TINY = {
    "ad01_fp32": 1e-5,
    "ad01_int8": 1e-2,
    "kws_ref_model_float32": 5e-2,
    "pretrainedResnet": 1e-5,
    "pretrainedResnet_quant": 1e-6,
    "vww_96_float": 1e-5,
    "vww_96_int8": 1e-6,
}
LOOSE = {"pose_landmark_full": 2e-3}  # as far as the interpreter's own kernels are apart


def agreement(path: Path, batch: int = 2) -> float:
    """The largest difference from the interpreter, of the largest value, at a batch that the file has not."""
    source = open_source(str(path))
    name = batch_name(source.model)
    assert name == "batch"
    feeds = sample_inputs(source.model, {name: batch}, np.random.default_rng(0))
    wanted = source.run(feeds)
    names = [str(y.name) for y in source.model.graph.outputs]
    with open_session(source.model) as session:
        made = dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))
    assert set(made) == set(wanted)
    assert all(made[n].shape == y.shape for n, y in wanted.items())
    return max(
        float(np.abs(made[n] - y).max() / max(np.abs(y).max(), 1e-4))  # what is that small is rounding alone
        for n, y in wanted.items()
    )


@pytest.mark.parametrize("name", TINY)
def test_mlperf_tiny_agrees_with_the_interpreter(name, tiny):
    assert agreement(tiny / f"{name}.tflite", 3) <= TINY[name]


@pytest.mark.parametrize("member", MEDIAPIPE)
def test_mediapipe_agrees_with_the_interpreter(member):
    members = {f"mediapipe/modules/{m}.tflite": sha256 for m, sha256 in MEDIAPIPE.items()}
    folder = fetched("mediapipe", "0.10.21", members, ".")
    name = Path(member).name
    assert agreement(folder / f"{name}.tflite") <= LOOSE.get(name, 1e-4)


def test_basic_pitch_agrees_with_the_interpreter():
    folder = fetched("basic-pitch", "0.4.0", {"basic_pitch/saved_models/icassp_2022/nmp.tflite": NMP}, ".")
    assert agreement(folder / "nmp.tflite") <= 1e-4


def test_the_document_lists_what_is_read():
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8").split("## Read from TFLite")[1].split("##")[0]
    assert [kind.strip(" `\n") for kind in text.split(",")] == sorted(TRANSLATIONS)


@pytest.mark.parametrize("name", ["pretrainedResnet", "pretrainedResnet_quant"])
def test_resnet_has_right_gradients_and_trains(name, tiny, tmp_path):
    """The int8 one to its logits: behind a softmax in int8 few codes change."""
    path = tiny / f"{name}.tflite"
    chosen, output = ("model.conv2d_6", "model.dense"), logits(path) if name.endswith("quant") else None
    options = ConvertOptions(task="feature-extraction", target_modules=chosen, output=output)
    manifest = convert(open_source(str(path)), tmp_path / "out.edgelora", options)
    assert {p.id for p in manifest.points} == set(chosen)
    assert ("spread" in manifest.source) == (output is None)
    bundle = Bundle.open(tmp_path / "out.edgelora")
    verdict = check(bundle)
    assert verdict.passed, verdict
    first, last = trained(bundle)
    assert last < 0.9 * first


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (3.0, False), (-1.0, False)])
def test_a_gradient_behind_codes_is_asked_at_more_places_where_few_cannot_tell(factor, passes, tiny, tmp_path):
    """Behind a softmax in int8 twelve places, drawn so, say of the right one that it is 0.85 off."""
    options = ConvertOptions(task="feature-extraction", target_modules=("model.conv2d",))
    convert(open_source(str(tiny / "pretrainedResnet_quant.tflite")), tmp_path / "out.edgelora", options)
    bundle = Bundle.open(tmp_path / "out.edgelora")
    path = bundle.path / bundle.training("cotangent", dropout=False).file
    graph = onnx.load(path, load_external_data=False)
    for name in ("model.conv2d.lora_A", "model.conv2d.lora_B"):
        (node,) = [node for node in graph.graph.node if f"grad.{name}" in node.output]
        node.output[list(node.output).index(f"grad.{name}")] = f"right.{name}"
        graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), f"factor.{name}"))
        graph.graph.node.append(onnx.helper.make_node("Mul", [f"right.{name}", f"factor.{name}"], [f"grad.{name}"]))
    onnx.save(graph, path)
    body = json.loads((bundle.path / "bundle.json").read_text())
    content = path.read_bytes()
    body["files"][path.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle.path / "bundle.json").write_text(json.dumps(body))
    bundle = Bundle.open(bundle.path)
    batch = parity_samples(bundle)[1][0]
    assert check_point(bundle, bundle.manifest.points[0], batch, np.random.default_rng(39)).passed == passes


def test_weights_alone_in_int8_are_computed_in_float32(tiny, tmp_path):
    """The interpreter rounds activations there and the bundle does not: parity alone is loose."""
    options = ConvertOptions(task="feature-extraction", target_modules=("functional_1.dense",))
    convert(open_source(str(tiny / "kws_ref_model_float32.tflite")), tmp_path / "out.edgelora", options)
    bundle = Bundle.open(tmp_path / "out.edgelora")
    assert bundle.manifest.source["precision"] == "float32"
    assert not rounds_activations(bundle)
    assert parity_tolerance(bundle.manifest, bundle.manifest.outputs[0].name) == PARITY_TOLERANCE["int8"]
    verdict = check(bundle)
    assert verdict.passed, verdict
    assert PARITY_TOLERANCE["float32"] < verdict.parity
    assert max(p.error for p in verdict.points) < 1e-2


@pytest.mark.parametrize(
    ("name", "values"), [("pretrainedResnet_quant", (0, 255)), ("vww_96_int8", (0, 1)), ("vww_96_float", (0, 1))]
)
def test_codes_say_how_pixels_enter(name, values, tiny):
    """A picture in codes takes all of them; a file of real numbers does not say, and has the usual ones."""
    source = open_source(str(tiny / f"{name}.tflite"))
    options = ConvertOptions(task="image-classification")
    body, _ = preprocessing_of(source, specs(source.model.graph.inputs), options)
    made = ImageSettings.read(body, name)
    np.testing.assert_allclose(made.range, values, rtol=1e-5)
    own, _ = preprocessing_of(source, specs(source.model.graph.inputs), replace(options, image={"scale": 2.0}))
    assert own["scale"] == 2.0


def test_a_source_is_known_as_well_as_it_knows_itself():
    """The mask of a pose's landmarks, which the interpreter's own two sets of kernels compute differently."""
    folder = fetched("mediapipe", "0.10.21", {f"mediapipe/modules/{m}.tflite": d for m, d in MEDIAPIPE.items()}, ".")
    source = open_source(str(folder / "pose_landmark_full.tflite"))
    feeds = sample_inputs(source.model, {"batch": 3}, np.random.default_rng(1))
    assert source.otherwise is not None
    wanted = source.run(feeds)
    spread = differences([(source.otherwise(feeds), wanted)])
    with open_session(source.model) as session:
        made = dict(zip(wanted, map(np.asarray, session.run(list(wanted), feeds)), strict=True))
    gaps = differences([(made, wanted)])
    assert PARITY_TOLERANCE["float32"] < gaps["Identity_2"] < 3 * spread["Identity_2"]
    custom = open_source(str(folder / "selfie_segmentation.tflite"))
    assert custom.otherwise is not None
    assert custom.otherwise({"input_1": np.zeros((1, 256, 256, 3), np.float32)}) == {}


def trained(bundle: Bundle) -> tuple[float, float]:
    """The squared error before and after plain steps on a few pictures."""
    rng = np.random.default_rng(0)
    x, y = bundle.manifest.inputs[0].name, bundle.manifest.outputs[0].name
    inputs = {x: rng.uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)}
    graph = bundle.graph(bundle.training("cotangent", dropout=False).file)
    values = absent_adapter(bundle.manifest)
    for point in bundle.manifest.points:
        a, b = random_pair(point, rng)
        values[point.input_a], values[point.input_b] = a, np.zeros_like(b)
    base = bundle.forward.run({**inputs, **values})[y]
    wanted = np.roll(base, 1, -1)
    slopes, losses = {n: np.float32(0) for n in values}, []
    for _ in range(30):
        gap = bundle.forward.run({**inputs, **values})[y] - wanted
        losses.append(float(np.mean(gap**2)))
        grads = graph.run({**inputs, **values, f"cotangent.{y}": gap / gap.size})
        for n in values:
            g = grads[f"grad.{n}"]
            slopes[n] = 0.9 * slopes[n] + 0.1 * float(np.mean(g**2))
            values[n] = (values[n] - 5e-4 * g / (np.sqrt(slopes[n]) + 1e-8)).astype(np.float32)
    return losses[0], min(losses)


@given(data=st.data())
@settings(max_examples=60)
def test_damaged_files_are_refused_by_name(data, tiny, tmp_path_factory):
    """Cut short or with bytes changed, a file is read or refused with an error of ours, in little memory."""
    content = bytearray((tiny / "pretrainedResnet_quant.tflite").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            low = data.draw(st.sampled_from([0, len(content) - 12_000]))
            content[data.draw(st.integers(low, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.tflite"
    path.write_bytes(content)
    with memory_below(256 << 20):
        try:
            open_source(str(path))
        except ConversionError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0" * 64], ids=["empty", "short", "zeros"])
def test_what_is_no_tflite_file(content, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match="not a TFLite file"):
        open_source(str(path))
