"""Shapes by measurement: what has none is not asked, and what depends on values is not taken for a constant."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgelora.errors import ConfigError
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.normalize import normalize
from edgelora_tools.runner import sample_inputs
from tests.convert.bundles import assert_checked, assert_same_outputs, to_bundle
from tests.convert.networks import FLOAT, INT64, Net

WIDTH = 6


def between(build, rows: int | str = "batch"):
    """x `[rows, 6]` -> first -> `build` -> second -> y `[..., 3]`, without types inside."""
    net = Net(18)
    net.output(net.linear(build(net, net.linear("x", "first", WIDTH, WIDTH)), "second", WIDTH, 3), "y")
    return net.model([("x", FLOAT, [rows, WIDTH])], [("y", FLOAT, None)], check=False)


def taken_apart(net: Net, x: str) -> str:
    parts = net("SplitToSequence", x, axis=0, keepdims=1)
    return net("SequenceAt", net("Identity", parts), net.const(0, np.int64))


def grown_in_a_loop(net: Net, x: str) -> str:
    carried = [
        helper.make_tensor_value_info("step", INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_sequence_value_info("before", FLOAT, None),
    ]
    nodes = [
        helper.make_node("SequenceInsert", ["before", x], ["after"]),
        helper.make_node("Identity", ["go"], ["go_on"]),
    ]
    made = [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_sequence_value_info("after", FLOAT, None),
    ]
    body = helper.make_graph(nodes, "body", carried, made)
    return net("ConcatFromSequence", net("Loop", net.const(2, np.int64), "", net("SequenceEmpty"), body=body), axis=0)


@pytest.mark.parametrize("build", [taken_apart, grown_in_a_loop])
def test_sequences_have_no_shape(build, tmp_path):
    bundle = to_bundle(between(build), tmp_path)
    assert_same_outputs(bundle, tmp_path / "out.onnx", {"x": np.ones((3, WIDTH), np.float32)})
    assert_checked(bundle)


@pytest.mark.parametrize("rows", [4, "batch"])
def test_a_size_that_depends_on_values_is_unknown(rows):
    def chosen(net: Net, x: str) -> str:
        positive = net("Greater", net.reduce_sum(x, [1], keepdims=0), net.const(0.0))
        return net("Compress", x, positive, axis=0)

    model = normalize(ir.from_proto(between(chosen, rows)))
    measure_shapes(model)
    (kept,) = (y for node in model.graph for y in node.outputs if node.op_type == "Compress")
    assert str(dims(kept)[0]).startswith("measured_")


@pytest.mark.parametrize(
    ("padded", "longest"), [(["batch", "time"], 5), (["batch", "time", 8], 5), (["batch", 8, "time"], 5), ([2, 8], 8)]
)
def test_lengths_stay_within_what_they_tell_of(padded, longest):
    net = Net(18)
    net.output(net("Identity", "sound"), "y")
    inputs = [("text", FLOAT, ["batch", "words"]), ("sound", FLOAT, padded), ("sound_lengths", INT64, [padded[0]])]
    model = ir.from_proto(net.model(inputs, [("y", FLOAT, None)], check=False))
    feeds = sample_inputs(model, {"batch": 2, "time": 5, "words": 3}, np.random.default_rng(0))
    assert feeds["sound_lengths"].tolist() == [longest, longest - 1]


def pictures(size: list) -> onnx.ModelProto:
    """x `[batch, 3, height, width]` -> a convolution -> one number per kernel."""
    net = Net(18)
    kernel = net.weight("stem.weight", 4, 3, 3, 3)
    net.output(net("GlobalAveragePool", net("Conv", "x", kernel, pads=[1, 1, 1, 1])), "y")
    return net.model([("x", FLOAT, size)], [("y", FLOAT, None)], check=False)


@pytest.mark.parametrize("size", [[-1, 3, "?", "?"], ["", 3, "", ""], [None, 3, None, None]])
def test_placeholders_are_no_names(size, tmp_path):
    bundle = to_bundle(pictures(size), tmp_path, target_modules=".*")
    assert bundle.manifest.inputs[0].shape == ("x_dim_0", 3, "x_dim_2", "x_dim_3")
    assert_checked(bundle)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_sound_has_some_hundred_samples(batch, tmp_path):
    net = Net(18)
    frames = net("Conv", net.unsqueeze("x", [1]), net.weight("frames.weight", 4, 1, 400), strides=[160])
    net.output(net("Tanh", frames), "y")
    model = net.model([("x", FLOAT, [batch, "samples"])], [("y", FLOAT, None)], check=False)
    assert_checked(to_bundle(model, tmp_path, target_modules=".*"))


def test_small_sizes_that_leave_nothing_are_passed_over(tmp_path):
    """At three rows, nothing comes after the tenth: the means over nothing are no numbers."""
    net = Net(18)
    later = net("Slice", net.linear("x", "up", WIDTH, WIDTH), *(net.const([n], np.int64) for n in (10, 9999, 1)))
    net.output(net.reduce_mean(later, [1]), "y")
    bundle = to_bundle(net.model([("x", FLOAT, ["batch", "time", WIDTH])], [("y", FLOAT, None)], check=False), tmp_path)
    assert_checked(bundle)


def test_a_window_larger_than_its_input_is_passed_over(tmp_path):
    """ONNX Runtime pools it, though the window reaches beyond: ONNX says that nothing comes out."""
    net = Net(18)
    seen = net("Conv", "x", net.weight("stem.weight", 4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    pooled = net(
        "MaxPool", net("MaxPool", seen, kernel_shape=[2, 2], strides=[2, 2]), kernel_shape=[2, 2], strides=[2, 2]
    )
    net.output(net("GlobalAveragePool", pooled), "y")
    model = net.model([("x", FLOAT, ["batch", 3, "height", "width"])], [("y", FLOAT, None)], check=False)
    assert_checked(to_bundle(model, tmp_path, target_modules=".*"))


def test_masks_of_sizes_that_do_not_follow(tmp_path):
    """Half of a height, rounded up, is no size that a manifest can tell: there is no dropout then, and no crash."""
    net = Net(18)
    seen = net("Conv", "x", net.weight("stem.weight", 4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    net.output(net("Conv", net("Tanh", seen), net.weight("end.weight", 4, 4, 3, 3)), "y")
    for size in (["height", "width"], [9, 8]):
        model = net.model([("x", FLOAT, ["batch", 3, *size])], [("y", FLOAT, None)], check=False)
        bundle = to_bundle(model, tmp_path, str(size[0]), target_modules=".*")
        assert_checked(bundle)
        if size == [9, 8]:
            assert bundle.training("cotangent", dropout=True).dropout
        else:
            with pytest.raises(ConfigError, match="lora_dropout to 0"):
                bundle.training("cotangent", dropout=True)


def test_sizes_that_agree_in_small_pictures_alone_have_names_of_their_own():
    """⌈height/8⌉ and ⌈width/16⌉ are both 1 in pictures of a few pixels, ⌈height/32⌉ is ⌈width/32⌉ in square ones."""
    net, stride, x = Net(18), 1, "picture"
    maps: dict[int, str] = {}
    for layer in range(5):
        weight = net.weight(f"{layer}.weight", 3, 3, 3, 3)
        x = net("Conv", x, weight, pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3])
        stride *= 2
        maps[stride] = x
    net.output(x, "map")
    shape = ["batch", 3, "height", "width"]
    model = ir.from_proto(net.model([("picture", FLOAT, shape)], [("map", FLOAT, ["batch", 3, "h", "w"])]))
    measure_shapes(model)
    values = {str(y.name): y for node in model.graph for y in node.outputs}
    sizes = {
        (stride, axis): dims(values[name])[axis] for stride, name in maps.items() if stride < 32 for axis in (2, 3)
    }
    last = next(y for y in values.values() if y.name == "map")
    sizes |= {(32, axis): dims(last)[axis] for axis in (2, 3)}
    assert len(set(sizes.values())) == len(sizes), sizes


def test_pictures_are_drawn_once_in_memory():
    model = ir.from_proto(pictures(["batch", 3, "height", "width"]))
    tracemalloc.start()
    x = sample_inputs(model, {"batch": 4, "height": 256, "width": 256}, np.random.default_rng(0))["x"]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.dtype == np.float32 and most < 1.2 * x.nbytes
    np.testing.assert_array_equal(x, np.random.default_rng(0).standard_normal(x.shape).astype(np.float32))
