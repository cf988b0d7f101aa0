"""Insertion points: stable ids, layers, uses of one module, biased forms; the table and the JSON of `points`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgelora.cli.main import main
from tests.convert import networks
from tests.convert.bundles import assert_checked, relative, to_bundle, train_feeds
from tests.convert.networks import FLOAT, Net, save

VECTOR = [("x", FLOAT, ["batch", 8])]


def point_ids(bundle):
    return [p.id for p in bundle.manifest.points]


def test_points_as_json_and_table(bundle_copy, capsys):
    bundle = bundle_copy(task="feature-extraction")
    assert main(["points", str(bundle), "--rank", "4", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    first = made["points"][0]
    assert first == {
        "id": "encoder.layer.0.attention.query_key",
        "op": "MatMul",
        "in_features": 16,
        "out_features": 32,
        "layer": 0,
        "kernel": [],
        "groups": 1,
        "bias": True,
        "parameters": 4 * (16 + 32),
        "gradient": True,
    }
    assert made["points"][-1]["id"] == "pooler.dense"
    assert made["points"][-1]["op"] == "Gemm"
    assert made["points"][-1]["layer"] is None
    assert made["rank"] == 4
    assert made["parameters"] == sum(p["parameters"] for p in made["points"])
    assert main(["points", str(bundle), "--rank", "4"]) == 0
    table = capsys.readouterr().out
    assert all(p["id"] in table for p in made["points"])
    assert f"{len(made['points'])} points, {made['parameters']:,} parameters at rank 4" in table


def test_info_names_the_first_of_many_targets(tmp_path, capsys):
    net, x = Net(17), "x"
    for number in range(14):
        x = net.linear(x, f"dense{number}", 8, 8)
    net.output(x, "y")
    names = tuple(f"dense{number}" for number in range(14))
    bundle = to_bundle(net.model(VECTOR, [("y", FLOAT, ["batch", 8])]), tmp_path, target_modules=names)
    assert main(["info", str(bundle.path)]) == 0
    assert f"points         14 ({', '.join(names[:12])} and 2 more)\n" in capsys.readouterr().out


def test_ids_are_the_same_in_every_conversion(tmp_path):
    made = []
    for name in ("a", "b"):
        source = save(networks.transformer(13, layers=3), tmp_path, f"{name}.onnx")
        made.append(to_bundle(source, tmp_path, name).manifest)
    assert made[0].points == made[1].points
    assert [p.layer for p in made[0].points] == [0] * 5 + [1] * 5 + [2] * 5 + [None]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layer.3.attention.query", 3),
        ("layers.0.self_attn.q_proj", 0),
        ("h.11.attn.c_attn", 11),
        ("model.layers.2.mlp.experts.5.up", 5),
        ("layers.4", 4),
        ("pooler.dense", None),
        ("dense1", None),
        ("block2.dense", None),
    ],
)
def test_layers(name, layer, tmp_path):
    net = Net(17)
    net.output(net.linear("x", name, 8, 4), "y")
    bundle = to_bundle(net.model(VECTOR, [("y", FLOAT, ["batch", 4])]), tmp_path)
    (point,) = bundle.manifest.points
    assert (point.id, point.layer) == (name, layer)


def test_ids_from_node_names_and_bias_names(tmp_path):
    """Weights without names, as TorchScript leaves them: the scopes in the node's name, else the bias's name."""
    net = Net(17)

    def anonymous(x, number, node, bias):
        net.weights[f"onnx::MatMul_{number}"] = net.rng.standard_normal((8, 8)).astype(np.float32)
        y = net("MatMul", x, f"onnx::MatMul_{number}", name=node)
        return net("Tanh", net("Add", net.weight(bias, 8), y) if bias else y)

    x = anonymous("x", 1, "/encoder/layer.0/query/MatMul", "encoder.layer.0.query.bias")
    x = anonymous(x, 2, "/encoder/layer.0/layer.0.0/MatMul", None)
    x = anonymous(x, 3, "MatMul_7", "pooler.dense.bias")
    x = anonymous(x, 4, "MatMul_8", None)
    net.output(x, "y")
    bundle = to_bundle(net.model(VECTOR, [("y", FLOAT, ["batch", 8])]), tmp_path)
    assert point_ids(bundle) == ["encoder.layer.0.query", "encoder.layer.0.0", "pooler.dense", "MatMul_8"]


def test_two_weights_of_one_id_stay_apart(tmp_path):
    """Two products in one module (a fused call): the ids differ, and stay the same next time."""
    net = Net(17)
    for name in ("onnx::MatMul_1", "onnx::MatMul_2"):
        net.weights[name] = net.rng.standard_normal((8, 8)).astype(np.float32)
    x = net("Tanh", net("MatMul", "x", "onnx::MatMul_1", name="/mixer/MatMul"))
    net.output(net("MatMul", x, "onnx::MatMul_2", name="/mixer/MatMul_1"), "y")
    model = net.model(VECTOR, [("y", FLOAT, ["batch", 8])])
    ids = [point_ids(to_bundle(model, tmp_path, name)) for name in ("a", "b")]
    assert ids[0] == ids[1] == ["mixer", "mixer_2"]


def test_biased_forms(tmp_path):
    """MatMul + Add on either side, Gemm with and without C, transB, alpha and beta; scalar and wide addends."""
    net = Net(17)
    weight = {n: net.weight(f"{n}.weight", 8, 8) for n in "abcdef"}
    bias = {n: net.weight(f"{n}.bias", 8) for n in "abcde"}
    x = net("Tanh", net("Add", net("MatMul", "x", weight["a"]), bias["a"]))
    x = net("Tanh", net("Add", bias["b"], net("MatMul", x, weight["b"])))
    x = net("Tanh", net("Gemm", x, weight["c"], bias["c"], transB=1))
    x = net("Tanh", net("Gemm", x, weight["d"]))
    x = net("Tanh", net("Gemm", x, weight["e"], bias["e"], alpha=0.5, beta=2.0))
    x = net("Add", net("MatMul", x, weight["f"]), net.weight("wide", 1, 8))
    net.output(x, "y")
    bundle = to_bundle(net.model(VECTOR, [("y", FLOAT, ["batch", 8])]), tmp_path)
    assert point_ids(bundle) == list("abcdef")
    feeds = train_feeds(bundle, {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)})

    def delta(x, name):
        return x @ feeds[f"{name}.lora_A"] @ feeds[f"{name}.lora_B"]

    w, y = net.weights, feeds["x"].astype(np.float64)
    y = np.tanh(y @ w["a.weight"] + w["a.bias"] + delta(y, "a"))
    y = np.tanh(y @ w["b.weight"] + w["b.bias"] + delta(y, "b"))
    y = np.tanh(y @ w["c.weight"].T + w["c.bias"] + delta(y, "c"))
    y = np.tanh(y @ w["d.weight"] + delta(y, "d"))
    y = np.tanh(0.5 * y @ w["e.weight"] + 2 * w["e.bias"] + delta(y, "e"))
    y = y @ w["f.weight"] + w["wide"] + delta(y, "f")
    assert relative(bundle.forward.run(feeds)["y"], y) < 1e-5
    assert_checked(bundle)


def test_what_is_no_point(tmp_path):
    """Products of activations, of a weight from the left, of a transposed activation, and of batches of weights."""
    net = Net(17)
    square = net("MatMul", net("Transpose", "x", perm=[1, 0]), "x")
    left = net("MatMul", net.weight("left.weight", 8, 8), square)
    left = net("Gemm", left, net.weight("flipped.weight", 8, 8), transA=1)
    stack = net("MatMul", left, net.weight("stack.weight", 3, 8, 8))
    net.output(net.linear(stack, "only", 8, 4), "y")
    model = net.model(VECTOR, [("y", FLOAT, [3, 8, 4])])
    assert point_ids(to_bundle(model, tmp_path)) == ["only"]


def test_a_product_of_a_vector(tmp_path):
    """MatMul takes one row without a batch: [in] to [out]."""
    net = Net(17)
    net.output(net.linear(net("Tanh", net.linear("x", "first", 8, 8)), "second", 8, 4), "y")
    bundle = to_bundle(net.model([("x", FLOAT, [8])], [("y", FLOAT, [4])]), tmp_path)
    assert_checked(bundle)


def test_products_of_four_dimensions(tmp_path):
    net = Net(17)
    shape = ["a", "b", "c", 8]
    net.output(net.linear(net("Tanh", net.linear("x", "first", 8, 6)), "second", 6, 4), "y")
    bundle = to_bundle(net.model([("x", FLOAT, shape)], [("y", FLOAT, ["a", "b", "c", 4])]), tmp_path)
    assert_checked(bundle)


def test_one_module_called_twice_in_a_row(tmp_path):
    """y = f(f(x)): the second call reads the first one's adapted output; one A and one B serve both."""
    net = Net(17)
    net.weight("shared.weight", 8, 8)
    net.weight("shared.bias", 8)
    x = "x"
    for _ in range(3):
        x = net("Add", net("MatMul", x, "shared.weight"), "shared.bias")
    net.output(x, "y")
    bundle = to_bundle(net.model(VECTOR, [("y", FLOAT, ["batch", 8])]), tmp_path)
    assert point_ids(bundle) == ["shared"]
    feeds = train_feeds(bundle, {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)})
    matrix = net.weights["shared.weight"] + feeds["shared.lora_A"] @ feeds["shared.lora_B"]
    y = feeds["x"]
    for _ in range(3):
        y = y @ matrix + net.weights["shared.bias"]
    assert relative(bundle.forward.run(feeds)["y"], y) < 1e-5
    record = bundle.training("cotangent", dropout=True)
    masks = [spec.name for spec in record.inputs if spec.dtype == "uint8"]
    assert masks == ["shared.mask", "shared.mask.1", "shared.mask.2"]
    assert_checked(bundle)


def test_usual_targets_and_all_points(transformer_file, tmp_path):
    """Without a choice, the attention projections that PEFT adapts; where none is there, every point."""
    chosen = to_bundle(transformer_file, tmp_path, "usual", target_modules=None)
    assert point_ids(chosen) == ["encoder.layer.0.attention.value"]
    assert chosen.manifest.target_modules == ("value",)
    every = to_bundle(networks.perceptron(17), tmp_path, "every", target_modules=None)
    assert point_ids(every) == ["first", "second"]
    assert every.manifest.target_modules == ("all-linear",)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"target_modules": ("up", "down")}, ["encoder.layer.0.up", "encoder.layer.0.down"]),
        ({"target_modules": r".*\.attention\.v.*"}, ["encoder.layer.0.attention.value"]),
        ({"exclude_modules": r"encoder.*"}, ["pooler.dense"]),
        ({"target_modules": ("dense",)}, ["pooler.dense"]),
    ],
)  # fmt: skip
def test_targets(options, ids, transformer_file, tmp_path):
    assert point_ids(to_bundle(transformer_file, tmp_path, **options)) == ids


@pytest.mark.parametrize(("width", "turned_first"), [(6, False), (8, False), (8, True)])
def test_a_weight_that_is_also_used_turned(width, turned_first, tmp_path):
    """h·W beside h·Wᵀ + b, a module's own call, which has its name: two products, an adapter each."""
    net = Net(17)
    weight, bias = net.weight("up.weight", 8, width), net.weight("up.bias", 8)
    x = net("MatMul", "x", weight, name="/MatMul") if turned_first else "x"
    y = net("Tanh", net("Gemm", x, weight, bias, transB=1, name="/up/Gemm"))
    net.output(y if turned_first else net("MatMul", y, weight, name="/MatMul"), "y")
    bundle = to_bundle(net.model([("x", FLOAT, ["batch", width])], [("y", FLOAT, ["batch", width])]), tmp_path)
    assert point_ids(bundle) == (["up_2", "up"] if turned_first else ["up", "up_2"])
    own = next(point for point in bundle.manifest.points if point.id == "up")
    assert (own.op, own.in_features, own.out_features, own.bias) == ("Gemm", width, 8, True)
    feeds = train_feeds(bundle, {"x": np.random.default_rng(0).standard_normal((3, width)).astype(np.float32)})
    up, turned = (net.weights["up.weight"].T, net.weights["up.weight"])
    up, turned = (
        matrix + feeds[f"{name}.lora_A"] @ feeds[f"{name}.lora_B"] for name, matrix in (("up", up), ("up_2", turned))
    )
    y = feeds["x"] @ turned if turned_first else feeds["x"]
    y = np.tanh(y @ up + net.weights["up.bias"])
    assert relative(bundle.forward.run(feeds)["y"], y if turned_first else y @ turned) < 1e-5
    assert_checked(bundle)
