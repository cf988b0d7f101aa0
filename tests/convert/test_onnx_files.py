"""What ONNX files look like in the wild: where weights lie, their precision, their names, missing pieces."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgelora.errors import ConversionError
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources import open_source
from tests.convert import networks
from tests.convert.bundles import (
    assert_checked,
    assert_same_outputs,
    base_outputs,
    relative,
    run_onnx,
    run_python,
    to_bundle,
    train_feeds,
)
from tests.convert.networks import FLOAT, WIDTH, Net, save, tokens, tokens_of


def vectors(batch=3, width=WIDTH, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((batch, width)).astype(np.float32)}


def test_external_data(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    model = networks.transformer(17)
    plain = save(model, inside)
    apart = save(model, outside, external=True)
    assert apart.with_suffix(".data").stat().st_size > 1000
    assert apart.stat().st_size < plain.stat().st_size
    a, b = to_bundle(plain, inside), to_bundle(apart, outside)
    assert a.manifest.base_digest == b.manifest.base_digest
    assert_same_outputs(b, apart, tokens_of(3, 6))


def test_missing_external_data(tmp_path):
    source = save(networks.transformer(17), tmp_path, external=True)
    source.with_suffix(".data").unlink()
    with pytest.raises(ConversionError, match=r"external data model\.data is missing"):
        to_bundle(source, tmp_path)


def test_truncated_external_data(tmp_path):
    source = save(networks.transformer(17), tmp_path, external=True)
    data = source.with_suffix(".data")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ConversionError):
        to_bundle(source, tmp_path)
    assert not (tmp_path / "out.edgelora").exists()


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07" * 40], ids=["empty", "text", "bytes"])
def test_not_a_model(content, tmp_path):
    source = tmp_path / "model.onnx"
    source.write_bytes(content)
    with pytest.raises(ConversionError, match="not a readable ONNX model"):
        to_bundle(source, tmp_path)


def test_missing_file_and_unknown_kinds(tmp_path):
    (tmp_path / "model.pt").touch()
    for spec, message in (
        ("nowhere.onnx", "no such file"),
        ("nowhere", "no such file"),
        ("model.pt", "converts .onnx"),
    ):
        with pytest.raises(ConversionError, match=message):
            open_source(str(tmp_path / spec))


def test_weights_in_constant_nodes(tmp_path):
    model = networks.transformer(13)
    graph = model.graph
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor, name=f"Constant_{tensor.name}")
        for tensor in graph.initializer
    ]
    nodes = [*constants, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    source = save(model, tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert "encoder.layer.0.up" in {p.id for p in bundle.manifest.points}
    assert_same_outputs(bundle, source, tokens_of(3, 6))
    assert_checked(bundle)


def halved(model, keep=lambda name: False):
    """The model computing in float16: weights, inputs and outputs, and what Cast and the constants produce."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not keep(tensor.name):
            half = numpy_helper.to_array(tensor).clip(-6e4, 6e4).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_whole_model_in_float16(opset, tmp_path):
    source = save(halved(networks.transformer(opset)), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert {v.dtype for v in bundle.manifest.outputs} == {"float32"}
    assert_same_outputs(bundle, source, tokens_of(3, 6), tolerance=1e-2)
    assert_checked(bundle)


def test_float16_inputs(tmp_path):
    source = save(halved(networks.perceptron(17)), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert [v.dtype for v in bundle.manifest.inputs] == ["float32"]
    wanted = run_onnx(source, {"x": vectors()["x"].astype(np.float16)})["y"]
    assert relative(base_outputs(bundle, vectors())["y"], wanted) < 1e-2
    assert_checked(bundle)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("opset", [13, 19, 23])
def test_half_weights_behind_a_cast(dtype, opset, tmp_path):
    """Weights stored in half precision and widened by a Cast: the source computes in float32, so parity is tight."""
    net = Net(opset)
    weights = {}
    for name in ("first", "second"):
        net.rng = np.random.default_rng(len(weights))
        values = net.rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        weights[name] = helper.make_tensor(f"{name}.weight", dtype, (WIDTH, WIDTH), values.ravel().tolist())
    x = net("Tanh", net("MatMul", "x", net("Cast", "first.weight", to=FLOAT)))
    wide = net("Cast", net("Identity", "second.weight"), to=FLOAT)
    net.output(net("MatMul", x, net("Transpose", wide, perm=[1, 0])), "y")
    model = net.model(
        [("x", FLOAT, ["batch", WIDTH])], [("y", FLOAT, ["batch", WIDTH])], check=False
    )  # fmt: skip
    model.graph.initializer.extend(weights.values())
    onnx.checker.check_model(model)
    source = save(model, tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert [(p.in_features, p.out_features) for p in bundle.manifest.points] == [(WIDTH, WIDTH)] * 2
    assert_same_outputs(bundle, source, vectors())
    assert_checked(bundle)


def test_functions(tmp_path):
    """A model-local function with an attribute, used twice, at an old and a new opset."""
    for opset in (13, 21):
        model = networks.perceptron(opset, lambda net, x: net("Affine", net("Tanh", x), "shift", domain="local"))
        model.graph.initializer.append(numpy_helper.from_array(np.ones(WIDTH, np.float32), "shift"))
        body = [
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("MatMul", ["c", "w"], ["d"]),
        ]
        weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32) * 2, "w")
        body.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
        model.functions.append(
            helper.make_function("local", "Affine", ["a", "b"], ["d"], body, [helper.make_opsetid("", opset)])
        )
        model.opset_import.append(helper.make_opsetid("local", 1))
        model.ir_version = 9
        onnx.checker.check_model(model)
        folder = tmp_path / str(opset)
        folder.mkdir()
        source = save(model, folder)
        bundle = to_bundle(source, folder)
        assert len(bundle.manifest.points) == 3
        assert_same_outputs(bundle, source, vectors())
        assert_checked(bundle)


def test_initializers_among_the_inputs(tmp_path):
    """As exporters before IR version 4 had to write them."""
    model = networks.transformer(11)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.checker.check_model(model)
    source = save(model, tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert [v.name for v in bundle.manifest.inputs] == ["input_ids", "attention_mask"]
    assert_same_outputs(bundle, source, tokens_of(2, 5))
    assert_checked(bundle)


def test_int32_ids(tmp_path):
    net = networks.encoder(17, pooler=False)
    model = net.model(tokens(dtype=TensorProto.INT32), [networks.HIDDEN])
    source = save(model, tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert {v.dtype for v in bundle.manifest.inputs} == {"int32"}
    assert_same_outputs(bundle, source, tokens_of(2, 5, dtype=np.int32))
    assert_checked(bundle)


def test_unnamed_dynamic_dimensions(tmp_path):
    source = save(networks.transformer(17, inputs=tokens(None, None)), tmp_path)
    bundle = to_bundle(source, tmp_path)
    first, second = (v.shape for v in bundle.manifest.inputs)
    assert first == second
    assert len(set(first)) == 2
    for batch, length in ((1, 1), (4, 9)):
        assert_same_outputs(bundle, source, tokens_of(batch, length))
    assert_checked(bundle)


def test_static_shapes_only(tmp_path):
    net = networks.encoder(17)
    outputs = [("last_hidden_state", FLOAT, [2, 6, WIDTH]), ("pooler_output", FLOAT, [2, WIDTH])]
    source = save(net.model(tokens(2, 6), outputs), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert [v.shape for v in bundle.manifest.inputs] == [(2, 6), (2, 6)]
    assert_same_outputs(bundle, source, tokens_of(2, 6))
    assert_checked(bundle)


def test_dynamic_batch_of_static_length(tmp_path):
    """Rows of [batch·6, width]: the dropout mask's size must be known from the inputs."""
    from edgelora.dimensions import evaluate_dimension

    net = networks.encoder(17, pooler=False)
    source = save(net.model(tokens("batch", 6), [("last_hidden_state", FLOAT, ["batch", 6, WIDTH])]), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert_same_outputs(bundle, source, tokens_of(3, 6))
    record = bundle.training("cotangent", dropout=True)
    (mask,) = (spec for spec in record.inputs if spec.name == "encoder.layer.0.down.mask")
    assert evaluate_dimension(mask.shape[0], {"batch": 5}) == 30


def test_sequence_with_an_extra_token(tmp_path):
    """A learned token in front of the sequence: length + 1 is a size that masks and cotangents need."""
    from edgelora.dimensions import evaluate_dimension

    net = Net(17)
    token = net("Expand", net.weight("token", 1, 1, 8), net("Concat", net.squeeze(net.unsqueeze(
        net("Slice", net("Shape", "x"), net.const([0], np.int64), net.const([1], np.int64)), [0]), [0]),
        net.const([1, 8], np.int64), axis=0))  # fmt: skip
    x = net("Concat", token, "x", axis=1)
    net.output(net.linear(net("Tanh", net.linear(x, "first", 8, 8)), "second", 8, 8), "y")
    shape = ["batch", "sequence", 8]
    source = save(net.model([("x", FLOAT, shape)], [("y", FLOAT, ["batch", "longer", 8])]), tmp_path)
    bundle = to_bundle(source, tmp_path)
    x = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)
    assert_same_outputs(bundle, source, {"x": x})
    record = bundle.training("cotangent", dropout=True)
    sizes = {"batch": 3, "sequence": 4}
    feeds = train_feeds(bundle, {"x": x})
    for spec in record.inputs:
        feeds[spec.name] = np.ones([evaluate_dimension(d, sizes) for d in spec.shape], spec.dtype)
        assert feeds[spec.name].shape[:2] == (3, 5)
    assert bundle.graph(record.file).run(feeds)
    assert_checked(bundle)


@pytest.mark.parametrize("window", [4, 40])
def test_a_window_that_may_be_longer_than_the_sequence(window, tmp_path):
    """x[:, :window] has min(sequence, window) rows: neither a number nor the sequence."""
    net = Net(17)

    def head(x):
        return net("Slice", x, *(net.const([n], np.int64) for n in (0, window, 1)))

    x = net("Mul", head(net("Tanh", net.linear("x", "first", 8, 8))), head("x"))
    net.output(net("Tanh", net.linear(x, "second", 8, 8)), "y")
    shapes = [["batch", name, 8] for name in ("sequence", "window")]
    source = save(net.model([("x", FLOAT, shapes[0])], [("y", FLOAT, shapes[1])]), tmp_path)
    bundle = to_bundle(source, tmp_path)
    for length in (1, 3, 4, 41):
        x = np.random.default_rng(0).standard_normal((2, length, 8)).astype(np.float32)
        assert_same_outputs(bundle, source, {"x": x})
        feeds = train_feeds(bundle, {"x": x})
        y = bundle.forward.run(feeds)["y"]
        assert y.shape[1] == min(length, window)
        record = bundle.training("cotangent", dropout=False)
        grads = bundle.graph(record.file).run({**feeds, "cotangent.y": np.ones_like(y)})
        assert all(np.isfinite(grad).all() for grad in grads.values())
    assert_checked(bundle)


def test_one_weight_used_by_two_nodes(tmp_path):
    net = Net(17)
    weight = net.weight("shared.weight", WIDTH, WIDTH)
    x = net("Tanh", net("MatMul", "x", weight))
    net.output(net("MatMul", x, weight), "y")
    model = net.model([("x", FLOAT, ["batch", WIDTH])], [("y", FLOAT, ["batch", WIDTH])])
    bundle = to_bundle(model, tmp_path)
    assert [p.id for p in bundle.manifest.points] == ["shared"]
    feeds = train_feeds(bundle, vectors())
    matrix = net.weights[weight] + feeds["shared.lora_A"] @ feeds["shared.lora_B"]
    assert relative(bundle.forward.run(feeds)["y"], np.tanh(feeds["x"] @ matrix) @ matrix) < 1e-5
    assert_checked(bundle)


@pytest.mark.parametrize("width", [4, 64])
def test_equal_weights_stay_two_points(width, tmp_path):
    """q and k begin as copies of one another: they are two modules and may be adapted apart."""
    net = Net(17)
    same = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    for name in ("query", "key"):
        net.weights[f"{name}.weight"] = same
    query, key = (net("MatMul", "x", f"{name}.weight", name=f"/{name}/MatMul") for name in ("query", "key"))
    net.output(net("Add", net("Tanh", query), key), "y")
    model = net.model([("x", FLOAT, ["batch", width])], [("y", FLOAT, ["batch", width])])
    bundle = to_bundle(model, tmp_path)
    assert [p.id for p in bundle.manifest.points] == ["query", "key"]
    feeds = train_feeds(bundle, vectors(width=width))
    q, k = (feeds["x"] @ (same + feeds[f"{n}.lora_A"] @ feeds[f"{n}.lora_B"]) for n in ("query", "key"))
    assert relative(bundle.forward.run(feeds)["y"], np.tanh(q) + k) < 1e-5


def test_names_that_look_like_an_exporters(tmp_path):
    """v_proj and value are modules, not the numbered values of an exporter."""
    net = Net(17)
    x = net.linear(net("Tanh", net.linear("x", "v_proj", WIDTH, WIDTH)), "val_head", WIDTH, WIDTH)
    net.output(net.linear(net("Tanh", x), "value", WIDTH, WIDTH), "y")
    for node in net.nodes:
        node.name = ""
    model = net.model([("x", FLOAT, ["batch", WIDTH])], [("y", FLOAT, ["batch", WIDTH])])
    bundle = to_bundle(model, tmp_path)
    assert [p.id for p in bundle.manifest.points] == ["v_proj", "val_head", "value"]


def test_anonymous_weights_and_nodes_get_unique_ids(tmp_path):
    net = Net(17)
    x = "x"
    for i in range(3):
        net.weights[f"onnx::MatMul_{i}"] = np.random.default_rng(i).standard_normal((8, 8)).astype(np.float32)
        x = net("Tanh", net("MatMul", x, f"onnx::MatMul_{i}"))
    net.output(x, "y")
    for node in net.nodes:
        node.name = ""
    model = net.model([("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 8])])
    bundle = to_bundle(model, tmp_path)
    ids = [p.id for p in bundle.manifest.points]
    assert len(set(ids)) == 3
    assert all(ids)


def test_nothing_to_adapt(tmp_path):
    net = Net(17)
    net.output(net("Tanh", "x"), "y")
    model = net.model([("x", FLOAT, ["batch", 4])], [("y", FLOAT, ["batch", 4])])
    with pytest.raises(ConversionError, match="nothing to adapt"):
        to_bundle(model, tmp_path)


def test_outputs_that_are_inputs_or_constants(tmp_path):
    """What passes an input on under its own name is left out; under another name, or as a constant, it stays."""
    net = Net(17)
    net.output(net.linear("x", "first", 8, 4), "y")
    net.output(net("Identity", "x"), "same")
    rows = ["batch", 8]
    made = [("y", FLOAT, ["batch", 4]), ("x", FLOAT, rows), ("same", FLOAT, rows), ("first.bias", FLOAT, [4])]
    bundle = to_bundle(net.model([("x", FLOAT, rows)], made, check=False), tmp_path)
    assert [spec.name for spec in bundle.manifest.outputs] == ["y", "same", "first.bias"]
    assert_checked(bundle)
    alone = Net(17)
    alone.linear("x", "first", 8, 4)
    with pytest.raises(ConversionError, match="returns its inputs alone"):
        to_bundle(alone.model([("x", FLOAT, rows)], [("x", FLOAT, rows)], check=False), tmp_path, "alone")


def test_float64_models(tmp_path):
    """Adapters are float32: a float64 base is converted to it or refused, and never half of each."""
    model = networks.perceptron(17)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.checker.check_model(model)
    source = save(model, tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert {v.dtype for v in (*bundle.manifest.inputs, *bundle.manifest.outputs)} == {"float32"}
    wanted = run_onnx(source, {"x": vectors()["x"].astype(np.float64)})["y"]
    assert relative(base_outputs(bundle, vectors())["y"], wanted) < 1e-6
    assert_checked(bundle)


def test_input_that_only_a_left_out_output_needs(tmp_path):
    """The bundle's graph does not take it; the source, run for parity, still does."""
    net = Net(17)
    net.output(net.linear(net("Tanh", net.linear("x", "first", 8, 8)), "second", 8, 3), "y")
    net.output(net("Add", "y", "offset"), "shifted")
    shape = ["batch", 3]
    model = net.model(
        [("x", FLOAT, ["batch", 8]), ("offset", FLOAT, shape)], [("y", FLOAT, shape), ("shifted", FLOAT, shape)]
    )
    bundle = to_bundle(model, tmp_path, output="y")
    assert [v.name for v in bundle.manifest.inputs] == ["x"]
    assert_checked(bundle)


def test_float_masks_are_masks(tmp_path):
    """A float attention mask is sampled as a mask, not as noise."""
    net = Net(17)
    hidden = net("Mul", net.linear("x", "first", 8, 8), net.unsqueeze("attention_mask", [2]))
    net.output(net.linear(hidden, "second", 8, 8), "y")
    shape = ["batch", "sequence"]
    model = net.model([("x", FLOAT, [*shape, 8]), ("attention_mask", FLOAT, shape)], [("y", FLOAT, [*shape, 8])])
    bundle = to_bundle(model, tmp_path, task="sequence-classification")
    from edgelora.parity import parity_samples

    masks = [inputs["attention_mask"] for inputs, _ in parity_samples(bundle)]
    assert all(set(mask.ravel()) <= {0.0, 1.0} and mask[:, 0].all() for mask in masks)
    assert any((mask == 0).any() for mask in masks)
    assert_checked(bundle)


def test_short_position_table(tmp_path):
    """Parity samples must fit a model that takes ten tokens at most."""
    net = networks.encoder(17, pooler=False)
    net.weights["embeddings.position.weight"] = net.weights["embeddings.position.weight"][:12]
    source = save(net.model(tokens(), [networks.HIDDEN]), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert_checked(bundle)


def test_bias_product_that_is_an_output_too(tmp_path):
    """The product before its bias is an output of the model: the adapter must show in both."""
    net = Net(17)
    product = net("MatMul", "x", net.weight("first.weight", 6, 6))
    net.output(net("Add", net.rename(product, "p"), net.weight("first.bias", 6)), "y")
    shape = ["batch", 6]
    model = net.model([("x", FLOAT, shape)], [("p", FLOAT, shape), ("y", FLOAT, shape)])
    bundle = to_bundle(model, tmp_path)
    feeds = train_feeds(bundle, vectors(width=6))
    wanted = feeds["x"] @ (net.weights["first.weight"] + feeds["first.lora_A"] @ feeds["first.lora_B"])
    got = bundle.forward.run(feeds)
    assert relative(got["p"], wanted) < 1e-6
    assert relative(got["y"], wanted + net.weights["first.bias"]) < 1e-6


def test_weights_read_inside_a_branch(tmp_path):
    """An If whose branches read what an adapter produces."""
    net = Net(17)
    hidden = net("Tanh", net.linear("x", "first", 8, 8))
    branch = [
        helper.make_graph([helper.make_node(op, [hidden], [f"{op}_out"])], op, [],
                          [helper.make_tensor_value_info(f"{op}_out", FLOAT, ["batch", 8])])
        for op in ("Abs", "Neg")
    ]  # fmt: skip
    large = net("Greater", net("ReduceMax", "x", keepdims=0), net.const(0.0))
    chosen = net("If", large, name="the_if", then_branch=branch[0], else_branch=branch[1])
    net.output(net.linear(chosen, "second", 8, 8), "y")
    shape = ["batch", 8]
    model = net.model([("x", FLOAT, shape)], [("y", FLOAT, shape)])
    bundle = to_bundle(model, tmp_path)
    assert [point.id for point in bundle.manifest.trainable] == ["first", "second"]
    assert_same_outputs(bundle, tmp_path / "out.onnx", vectors(width=8))
    assert_checked(bundle)


def test_torch_is_not_needed(tmp_path):
    save(networks.transformer(17), tmp_path)
    script = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "from edgelora.cli.main import main\n"
        "status = main(['convert', 'model.onnx', '-o', 'out.edgelora'])\n"
        "assert not [m for m in sys.modules if m.startswith('torch.')]\n"
        "sys.exit(status)"
    )
    done = run_python(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "check passed" in done.stdout
    assert "normal form" in done.stderr and "arning" not in done.stderr  # its stages, and nothing else


def test_conversion_leaves_the_source_alone(tmp_path):
    source = save(networks.transformer(13), tmp_path, external=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    opened = open_source(str(source))
    for name in ("a", "b"):  # one source may be converted for two tasks
        convert(opened, tmp_path / f"{name}.edgelora", ConvertOptions(task="sequence-classification"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert (tmp_path / "a.edgelora" / "bundle.json").read_bytes() == (
        tmp_path / "b.edgelora" / "bundle.json"
    ).read_bytes()
