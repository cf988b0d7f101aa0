"""`edgelora check` finds what is wrong with a bundle, says so by its exit status, and stores the verdict."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgelora.bundle import Bundle
from edgelora.check import check, inputs_of_points
from edgelora.cli.main import main
from edgelora.manifest import InsertionPoint, Manifest
from edgelora.parity import parity_samples, parity_tolerance
from edgelora.reference_losses import REFERENCES
from tests.convert import networks
from tests.convert.bundles import to_bundle
from tests.convert.networks import FLOAT, Net, save, tokens_of


def edit(bundle, file, change):
    """Change a graph of the bundle and make the manifest agree, as a wrong compiler would have written it."""
    model = onnx.load(bundle / file, load_external_data=False)
    change(model.graph)
    (bundle / file).write_bytes(model.SerializeToString())
    resign(bundle, file)


def resign(bundle, file):
    manifest = json.loads((bundle / "bundle.json").read_text())
    content = (bundle / file).read_bytes()
    manifest["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def insert_after(name, op_type, *constants):
    """An edit that puts an operator behind the value `name`, which keeps its name."""

    def change(graph):
        for node in graph.node:
            if name in node.output:
                node.output[:] = ["before" if y == name else y for y in node.output]
        for i, value in enumerate(constants):
            graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), f"factor_{i}"))
        names = ["before", *(f"factor_{i}" for i in range(len(constants)))]
        graph.node.append(helper.make_node(op_type, names, [name]))

    return change


UP_A, UP_B = "grad.encoder.layer.0.up.lora_A", "grad.encoder.layer.0.up.lora_B"
SABOTAGE = {
    "negated": ("train-cotangent.onnx", insert_after(UP_A, "Neg"), "up"),
    "halved": ("train-cotangent.onnx", insert_after(UP_B, "Mul", 0.5), "up"),
    "zero": ("train-cotangent.onnx", insert_after(UP_B, "Mul", 0.0), "up"),
    "not a number": ("train-cotangent.onnx", insert_after(UP_B, "Mul", np.nan), "up"),
    "head": ("train-cotangent.onnx", insert_after("grad.classifier.bias", "Neg"), "classifier"),
    "loss graph": ("train-cross-entropy.onnx", insert_after(UP_A, "Neg"), "train-cross-entropy.onnx"),
    "loss": ("train-cross-entropy.onnx", insert_after("loss", "Mul", 0.5), "train-cross-entropy.onnx"),
    "loss graph's head": (
        "train-cross-entropy.onnx",
        insert_after("grad.classifier.weight", "Mul", 1.1),
        "train-cross-entropy.onnx",
    ),
    "dropout": (
        "train-cross-entropy-dropout.onnx",
        insert_after(UP_A, "Neg"),
        "train-cross-entropy-dropout.onnx",
    ),
    "dropout's cotangents": (
        "train-cotangent-dropout.onnx",
        insert_after(UP_A, "Neg"),
        "train-cotangent-dropout.onnx",
    ),
    "parity": ("forward.onnx", insert_after("logits", "Mul", 1.01), "parity"),
    "parity, not a number": ("forward.onnx", insert_after("logits", "Mul", np.nan), "parity"),
}


@pytest.mark.parametrize("kind", SABOTAGE)
def test_sabotage_is_found(kind, bundle_copy, capsys):
    bundle = bundle_copy()
    file, change, suspect = SABOTAGE[kind]
    edit(bundle, file, change)
    assert main(["check", str(bundle), "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out, parse_constant=lambda x: pytest.fail(f"{x} is not JSON"))
    assert not verdict["passed"]
    wrong = {v["id"].split(".")[-1] for v in verdict["points"] if not v["passed"]}
    wrong |= {v["file"] for v in verdict["graphs"] if not v["passed"]}
    if verdict["parity"] > 1e-4:
        wrong.add("parity")
    assert suspect in wrong
    if suspect.startswith("train-"):
        assert wrong == {suspect}
    assert json.loads((bundle / "bundle.json").read_text())["verification"] == verdict
    assert main(["info", str(bundle)]) == 0
    assert "verification   FAILED" in capsys.readouterr().out


def test_mask_that_the_backward_pass_forgets(bundle_copy):
    """Dropout in the forward pass alone: by masks of ones nothing is seen."""
    bundle = bundle_copy()

    def forget(graph):
        """The product Xᵀ·dH of the point `up` reads X instead of X∘mask."""
        readers = {x: n for n in reversed(graph.node) for x in n.input}
        mask, mul = "encoder.layer.0.up.mask", readers["encoder.layer.0.up.mask"]
        while mul.op_type != "Mul":  # rows of the mask, as numbers
            mask, mul = mul.output[0], readers[mul.output[0]]
        seen = mul.output[0]
        plain = next(x for x in mul.input if x != mask)
        users = [n for n in graph.node if seen in n.input[n.op_type == "MatMul" :]]  # X·A reads it first
        assert users
        for node in users:
            node.input[:] = [plain if x == seen else x for x in node.input]

    edit(bundle, "train-cross-entropy-dropout.onnx", forget)
    verdict = check(Bundle.open(bundle))
    assert [g.file for g in verdict.graphs if not g.passed] == ["train-cross-entropy-dropout.onnx"]


def test_a_point_that_a_graph_does_not_train(bundle_copy):
    """The manifest lists the point; the training graph returns nothing for it."""
    bundle = bundle_copy()

    def drop(graph):
        kept = [y for y in graph.output if y.name not in (UP_A, UP_B)]
        del graph.output[:]
        graph.output.extend(kept)

    edit(bundle, "train-cotangent.onnx", drop)
    manifest = json.loads((bundle / "bundle.json").read_text())
    for graph in manifest["training"]:
        graph["points"] = [p for p in graph["points"] if not p.endswith(".up")]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    verdict = check(Bundle.open(bundle))
    assert "encoder.layer.0.up" in [p.id for p in verdict.points if not p.passed]


def test_a_passing_verdict_is_stored_and_shown(bundle_copy, capsys):
    bundle = bundle_copy()
    assert main(["info", str(bundle)]) == 0
    assert "none; run `edgelora check`" in capsys.readouterr().out
    assert main(["check", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "check passed" in out
    assert "WRONG" not in out
    assert main(["info", str(bundle)]) == 0
    assert "verification   passed" in capsys.readouterr().out
    manifest = Bundle.open(bundle).manifest
    assert manifest.verification is not None
    assert manifest.verification["passed"]
    ids = [p["id"] for p in manifest.verification["points"]]
    assert ids == [*(p.id for p in manifest.points), "classifier"]
    assert Manifest.from_json(manifest.to_json(), "again") == manifest


def test_check_on_given_inputs(bundle_copy, transformer_file, tmp_path, capsys):
    bundle, inputs = bundle_copy(), tmp_path / "inputs.npz"
    np.savez(inputs, allow_pickle=False, **tokens_of(2, 30))
    assert main(["check", str(bundle), "--source", str(transformer_file), "--inputs", str(inputs), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["parity_samples"] == 1 + len(parity_samples(Bundle.open(bundle)))


def test_check_against_another_source(bundle_copy, tmp_path, capsys):
    bundle, inputs = bundle_copy(), tmp_path / "inputs.npz"
    np.savez(inputs, allow_pickle=False, **tokens_of(2, 30))
    net = networks.encoder(17, pooler=False)
    net.weights["encoder.layer.0.up.bias"] = net.weights["encoder.layer.0.up.bias"] + np.float32(0.1)
    other = save(net.model(networks.tokens(), [networks.HIDDEN]), tmp_path, "other.onnx")
    assert main(["check", str(bundle), "--source", str(other), "--inputs", str(inputs)]) == 1
    assert "FAILED" in capsys.readouterr().out
    stranger = save(networks.perceptron(17), tmp_path, "stranger.onnx")
    assert main(["check", str(bundle), "--source", str(stranger), "--inputs", str(inputs)]) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no array for attention_mask, input_ids"),
        ({"input_ids": np.ones((2, 3)), "attention_mask": np.ones((2, 4))}, "does not run"),
        ({"input_ids": np.ones(2), "attention_mask": np.ones(2)}, "does not run"),
    ],
    ids=["missing", "sizes", "rank"],
)
def test_inputs_that_do_not_fit(arrays, message, bundle_copy, transformer_file, tmp_path, capsys):
    bundle, inputs = bundle_copy(), tmp_path / "inputs.npz"
    np.savez(inputs, **arrays)
    before = (bundle / "bundle.json").read_bytes()
    assert main(["check", str(bundle), "--source", str(transformer_file), "--inputs", str(inputs)]) == 2
    assert message in capsys.readouterr().err
    inputs.write_bytes(b"PK\x03\x04 not an archive")
    assert main(["check", str(bundle), "--source", str(transformer_file), "--inputs", str(inputs)]) == 2
    assert main(["check", str(bundle), "--inputs", str(inputs)]) == 2
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_wrong_compiler_is_found_at_conversion(transformer_file, tmp_path, monkeypatch, capsys):
    """A gradient rule that forgets a factor: `convert` ends with status 1 and the bundle says so."""
    from edgelora_tools.gradients.registry import RULES

    rule = RULES["", "Tanh"]

    def wrong(op, node, dy):
        (thunk,) = rule(op, node, dy)
        assert thunk is not None
        return [lambda: op.Mul(thunk(), 0.5)]

    monkeypatch.setitem(RULES, ("", "Tanh"), wrong)
    bundle = tmp_path / "wrong.edgelora"
    command = ["convert", str(transformer_file), "-o", str(bundle), "--task", "regression", "--pooling", "pooler"]
    assert main([*command, "--target-modules", "all-linear"]) == 1
    assert "check FAILED" in capsys.readouterr().out
    manifest = Bundle.open(bundle).manifest
    assert manifest.verification is not None
    assert not manifest.verification["passed"]


def test_parity_tolerance_is_tight_for_float32_and_loose_for_half(tmp_path):
    """A hundredth off is an error of a float32 base; so it is of one that only stores its weights in half."""
    model = networks.perceptron(17)
    bundle = to_bundle(model, tmp_path)
    assert bundle.manifest.source["precision"] == "float32"
    assert parity_tolerance(bundle.manifest, "y") == 1e-4
    unsure = replace(bundle.manifest, source={**bundle.manifest.source, "spread": {"y": 1e-3, "z": 1e-6}})
    assert parity_tolerance(unsure, "y") == 3e-3 and parity_tolerance(unsure, "z") == 1e-4
    assert parity_tolerance(unsure, "logits") == 3e-3  # of a head, which is of all of them
    wrong = replace(bundle.manifest, source={**bundle.manifest.source, "spread": {"y": 1e9}})
    assert parity_tolerance(wrong, "y") == 2e-2  # NaN of one set of kernels excuses nothing
    net = Net(17)
    cast = net("Cast", net.const(np.eye(4), np.float16), to=FLOAT)
    net.output(net("MatMul", "x", cast), "y")
    stored = net.model([("x", FLOAT, ["batch", 4])], [("y", FLOAT, ["batch", 4])])
    assert to_bundle(stored, tmp_path, "stored").manifest.source["precision"] == "float32"


@pytest.mark.parametrize("loss", REFERENCES)
def test_reference_losses_against_differences(loss):
    rng = np.random.default_rng(0)
    on_maps = loss in ("cross-entropy-dice", "heatmap")
    y = rng.standard_normal((2, 3, 4, 3) if on_maps else (5, 4))
    rows = {"cross-entropy-dice": (2, 4, 3), "heatmap": (2, 3)}.get(loss, (5,))
    feeds = {
        "labels": rng.integers(0, y.shape[1], rows),
        "targets": rng.standard_normal(y.shape),
        "loss_weight": rng.uniform(0.5, 1.5, rows) * (rng.random(rows) < 0.7 if on_maps else 1.0),
        "dice_weight": rng.uniform(0.5, 1.5, 2),
        "anchors": np.arange(5) % 3,
        "positives": (np.arange(5) + 1) % 5,
        "negatives": (np.arange(5) + 3) % 5,
        "bias_mask": rng.standard_normal((5, 5)),
        "inverse_temperature": np.asarray(3.0),
        "margin": np.asarray(1.0),
    }
    _, gradient = REFERENCES[loss](y, feeds)
    numeric = np.zeros_like(y)
    for index in np.ndindex(*y.shape):
        step = np.zeros_like(y)
        step[index] = 1e-6
        numeric[index] = (REFERENCES[loss](y + step, feeds)[0] - REFERENCES[loss](y - step, feeds)[0]) / 2e-6
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-7)


def test_the_check_reads_a_bundle_of_a_folder_that_moved(bundle_copy, tmp_path):
    bundle = bundle_copy()
    moved = tmp_path / "elsewhere" / "b.edgelora"
    moved.parent.mkdir()
    shutil.move(bundle, moved)
    assert check(Bundle.open(moved)).passed


def bent(folder) -> Bundle:
    """Six linear layers with Abs between them: a kink wherever differences look."""
    net, x, width = Net(18), "x", 64
    for layer in range(6):
        x = net.linear(net("Abs", x) if layer else x, f"layer.{layer}", width, width)
    net.output(x, "y")
    rows = ["batch", width]
    return to_bundle(net.model([("x", FLOAT, rows)], [("y", FLOAT, rows)], check=False), folder)


def test_kinks_do_not_fail_a_right_gradient(tmp_path):
    verdict = check(bent(tmp_path))
    assert verdict.passed, [(p.id, p.error) for p in verdict.points if not p.passed]


@pytest.mark.parametrize(("factor", "large"), [(-1.0, False), (0.9, False), (1.1, False), (0.9, True)])
def test_a_wrong_gradient_fails_among_kinks(factor, large, tmp_path, monkeypatch):
    """Also where a network counts as large, and a point is asked a second time."""
    if large:
        monkeypatch.setattr(importlib.import_module("edgelora.check"), "_LARGE", 1)
    bundle = bent(tmp_path)
    edit(bundle.path, "train-cotangent.onnx", insert_after("grad.layer.1.lora_B", "Mul", factor))
    wrong = [p.id for p in check(Bundle.open(bundle.path)).points if not p.passed]
    assert wrong == ["layer.1"]


@pytest.mark.parametrize("side", [16, 128])
def test_large_samples_are_checked_in_a_batch_once_a_kind(side):
    """Of pictures, a kind of point is seen in a batch once; of small inputs every point is."""
    kernels = [((3, 3), 1), ((1, 1), 1), ((5, 5), 1), ((1, 1), 1), ((3, 3), 8)]
    points = [InsertionPoint(f"c{i}", "Conv", 8, 8, kernel=k, groups=g) for i, (k, g) in enumerate(kernels)]
    points.append(InsertionPoint("last", "MatMul", 8, 8))
    batch, alone = ({"x": np.zeros((rows, 3, side, side), np.float32)} for rows in (3, 1))
    found = {point.id: len(on["x"]) for point, on in inputs_of_points(points, batch, alone)}
    small = dict.fromkeys(found, 3)
    assert list(found) == [point.id for point in points]
    assert found == (small if side == 16 else small | {"c2": 1, "c3": 1})


def test_a_point_that_no_gradient_reaches_is_named_and_has_no_cosine(tmp_path, capsys):
    """Behind it stands a ReLU that is shut."""
    net = Net(17)
    x = net("Tanh", net.linear("x", "first", 16, 16))
    net.weights["dead.bias"] = np.full(16, -1e3, np.float32)
    dead = net("Relu", net("Add", net("MatMul", x, net.weight("dead.weight", 16, 16)), "dead.bias"))
    net.output(net.linear(net("Add", x, dead), "last", 16, 16), "y")
    rows = ["batch", 16]
    bundle = to_bundle(net.model([("x", FLOAT, rows)], [("y", FLOAT, rows)]), tmp_path, quantize="int8")
    assert main(["check", str(bundle.path), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["unreached"] == ["dead"]
    assert [q["id"] for q in verdict["quantized"]] == ["first", "last"]
    assert main(["info", str(bundle.path)]) == 0
    assert "on the mean of 2 points (none reaches dead)" in capsys.readouterr().out


def test_a_base_of_which_no_gradient_reaches_a_point_names_them_all(tmp_path, capsys):
    """Also where it was quantized, so that there is no cosine to tell."""
    net = Net(17)
    net.weights["shut.bias"] = np.full(16, -1e6, np.float32)
    dead = net("Relu", net("Add", net.linear(net.linear("x", "first", 16, 16), "second", 16, 16), "shut.bias"))
    net.output(net("Add", "x", dead), "y")
    rows = ["batch", 16]
    bundle = to_bundle(net.model([("x", FLOAT, rows)], [("y", FLOAT, rows)]), tmp_path, quantize="int8")
    assert main(["check", str(bundle.path), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["unreached"] == ["first", "second"] and not verdict["quantized"]
    told = "no gradient reaches first, second"
    for verb in ("check", "info"):
        assert main([verb, str(bundle.path)]) == 0
        assert told in capsys.readouterr().out


def test_the_error_of_another_methods_gradient_is_told_as_it_is(tmp_path):
    """Also of a quantized base, whose gradients are held to another tolerance."""
    bundle = to_bundle(networks.transformer(17, layers=1, pooler=False), tmp_path, quantize="int8", methods=("ia3",))
    (record,) = bundle.manifest.methods["ia3"].training
    (name, *_) = [y for y in bundle.graph(record.file).outputs if y.endswith(".ia3_out")]
    edit(bundle.path, record.file, insert_after(name, "Mul", 3.0))
    (verdict,) = [graph for graph in check(Bundle.open(bundle.path)).graphs if graph.file == record.file]
    assert not verdict.passed
    assert verdict.where == name.removeprefix("grad.").rpartition(".")[0]
    assert verdict.error > 0.3
