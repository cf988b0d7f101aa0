"""Which operators are computed on rows, one small network a reason; what these compute stays the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgelora_tools.gradients.shapes import dims
from edgelora_tools.passes import image_rows
from edgelora_tools.runner import open_session
from tests.convert.networks import FLOAT, Net

IMAGE: list[int | str] = ["n", 4, 5, 5]
_MOVES = {"Reshape", "Transpose"}


def conv(net: Net, x: str, name: str, *kernel: int, bias: bool = False, groups: int = 1, **attributes: Any) -> str:
    """A convolution of 4 channels by frozen numbers, of one pixel unless said otherwise."""
    weights = [net.weight(f"{name}.weight", 4, 4 // groups, *(kernel or (1, 1)))]
    weights += [net.weight(f"{name}.bias", 4)] if bias else []
    return net("Conv", x, *weights, group=groups, **attributes)


def delta(net: Net, x: str, a: str = "a", b: str = "b") -> str:
    """(X ⋆ A) ⋆ B."""
    return net("Conv", net("Conv", x, a), b)


def model_of(build: Callable[[Net], Sequence[str]], image: Sequence[int | str]) -> ir.Model:
    """A network of an image `x`, an adapter's kernels `a` and `b`, and what is between, `h`; `build` names outputs."""
    net = Net(18)
    outputs = build(net)
    inputs = [("x", FLOAT, list(image)), ("a", FLOAT, [2, 4, 1, 1]), ("b", FLOAT, [4, 2, 1, 1])]
    inputs += [("h", FLOAT, [image[0], 2, *image[2:]])]
    proto = net.model(inputs, [(y, FLOAT, None) for y in outputs], check=False)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def on_images(model: ir.Model) -> list[str]:
    """The operators that make images, or were not replaced."""
    made = [(node, node.outputs[0].shape) for node in model.graph if node.op_type not in _MOVES]
    return sorted(node.op_type for node, shape in made if shape is not None and len(shape) > 3)


def results(model: ir.Model, image: Sequence[int | str]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"x": [d if isinstance(d, int) else 3 for d in image], "a": [2, 4, 1, 1], "b": [4, 2, 1, 1]}
    shapes["h"] = [3, 2, 5, 5]
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    with open_session(model, optimize=False) as session:
        return [np.asarray(y) for y in session.run(None, feeds)]


def both(net: Net, x: str) -> list[str]:
    """What reads a value in rows, and what reads an image of it."""
    return [conv(net, x, "one"), conv(net, x, "three", 3, 3)]


COMPUTED: dict[str, tuple[Callable[[Net], Sequence[str]], list[str]]] = {
    "a product": (lambda n: [conv(n, "x", "w")], []),
    "with a bias": (lambda n: [conv(n, "x", "w", bias=True)], []),
    "a wide kernel": (lambda n: [conv(n, "x", "w", 1, 3)], ["Conv"]),
    "with a stride": (lambda n: [conv(n, "x", "w", strides=[1, 2])], ["Conv"]),
    "with an edge": (lambda n: [conv(n, "x", "w", pads=[0, 0, 0, 1])], ["Conv"]),
    "in groups": (lambda n: [conv(n, "x", "w", groups=2)], ["Conv"]),
    "an operator behind a product": (lambda n: [n("Relu", conv(n, "x", "w"))], []),
    "an operator of which an operand is absent": (lambda n: [n("Clip", conv(n, "x", "w"), "", n.const(0.5))], []),
    "an absent operand beside no product": (
        lambda n: [conv(n, "x", "w"), n("Clip", "x", "", n.const(0.5))],
        ["Clip"],
    ),
    "operators before a product": (lambda n: [conv(n, n("Tanh", n("Relu", "x")), "w")], []),
    "before a product and an image's reader": (lambda n: both(n, n("Relu", "x")), ["Conv", "Relu"]),
    "before a product, and an output": (lambda n: [y := n("Relu", "x"), conv(n, y, "w")], ["Relu"]),
    "beside no product": (lambda n: [conv(n, "x", "w"), n("Relu", "x")], ["Relu"]),
    "with no product": (lambda n: [n("Relu", conv(n, "x", "w", 3, 3))], ["Conv", "Relu"]),
    "not element by element": (lambda n: [n("Softmax", conv(n, "x", "w"), axis=1)], ["Softmax"]),
    "a number": (lambda n: [n("Mul", conv(n, "x", "w"), n.const(2.0))], []),
    "numbers of channels": (lambda n: [n("Mul", conv(n, "x", "w"), n.weight("s", 4, 1, 1))], []),
    "numbers of channels, first": (lambda n: [n("Sub", n.weight("s", 1, 4, 1, 1), conv(n, "x", "w"))], []),
    "one number for all": (lambda n: [n("Mul", conv(n, "x", "w"), n.weight("s", 1, 1))], []),
    "numbers of places": (lambda n: [n("Mul", conv(n, "x", "w"), n.weight("s", 5, 5))], ["Mul"]),
    "numbers of rows": (lambda n: [n("Mul", conv(n, "x", "w"), n.weight("s", 4, 1, 5))], ["Mul"]),
    "two images": (lambda n: [n("Add", conv(n, "x", "w"), "x")], []),
    "numbers of images": (
        lambda n: [n("Mul", conv(n, "x", "w"), n("ReduceMax", "x", n.const([2, 3], np.int64)))],
        ["Mul", "ReduceMax"],
    ),
    "behind a mean": (
        lambda n: [n("Mul", n.weight("s", 4, 1, 1), n("GlobalAveragePool", conv(n, "x", "w")))],
        ["Mul"],
    ),
    "between a mean and a product": (
        lambda n: [conv(n, n("Mul", n.weight("s", 4, 1, 1), n("GlobalAveragePool", conv(n, "x", "w"))), "v")],
        [],
    ),
    "a mean": (lambda n: [n("GlobalAveragePool", conv(n, "x", "w"))], []),
    "a mean of places": (lambda n: [n.reduce_mean(conv(n, "x", "w"), [-1, 2], keepdims=0)], []),
    "a mean that stays an image": (lambda n: [n.reduce_mean(conv(n, "x", "w"), [2, 3])], []),
    "a mean of channels": (lambda n: [n.reduce_mean(conv(n, "x", "w"), [1])], ["ReduceMean"]),
    "a mean of columns": (lambda n: [n.reduce_mean(conv(n, "x", "w"), [2])], ["ReduceMean"]),
    "a mean of all": (lambda n: [n("ReduceMean", conv(n, "x", "w"), keepdims=1)], ["ReduceMean"]),
    "a sum": (lambda n: [n.reduce_sum(conv(n, "x", "w"), [2, 3])], ["ReduceSum"]),
    "a mean of an image": (lambda n: [n("GlobalAveragePool", "x"), conv(n, "x", "w")], ["GlobalAveragePool"]),
    "an operator before a mean": (lambda n: [n("GlobalAveragePool", n("Relu", conv(n, "x", "w")))], []),
    "the same, and an output": (lambda n: [y := n("Relu", conv(n, "x", "w")), n("GlobalAveragePool", y)], []),
    "the same, read by a product": (
        lambda n: [n("GlobalAveragePool", y := n("Relu", conv(n, "x", "w"))), conv(n, y, "v")],
        [],
    ),
    "a product that is an output": (lambda n: [y := conv(n, "x", "w"), conv(n, y, "v")], []),
    "a product that an image's reader has too": (lambda n: both(n, conv(n, "x", "w")), ["Conv"]),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_what_is_computed_on_rows(case: str) -> None:
    build, stays = COMPUTED[case]
    model = model_of(build, IMAGE)
    wanted, names = results(model, IMAGE), [y.name for y in model.graph.outputs]
    image_rows.images_in_rows(model.graph)
    assert [y.name for y in model.graph.outputs] == names
    assert on_images(model) == sorted(stays)
    for got, y in zip(results(model, IMAGE), wanted, strict=True):
        np.testing.assert_allclose(got, y, rtol=0, atol=1e-5)


ADAPTERS: dict[str, tuple[Callable[[Net], Sequence[str]], list[str]]] = {
    "added to a product": (lambda n: [n("Add", conv(n, "x", "w"), delta(n, "x"))], []),
    "added before a product": (lambda n: [n("Add", delta(n, "x"), conv(n, "x", "w"))], []),
    "alone": (lambda n: [conv(n, "x", "w"), delta(n, "x")], ["Conv", "Conv"]),
    "times a product": (lambda n: [n("Mul", conv(n, "x", "w"), delta(n, "x"))], ["Conv", "Conv"]),
    "added to what is no product": (
        lambda n: [conv(n, "x", "w"), n("Add", conv(n, "x", "v", groups=2), delta(n, "x"))],
        ["Add", "Conv", "Conv", "Conv"],
    ),
    "with a bias of B": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", n("Conv", "x", "a"), "b", n.weight("c", 4)))],
        ["Conv", "Conv"],
    ),
    "with a bias of A": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", n("Conv", "x", "a", n.weight("c", 2)), "b"))],
        ["Conv", "Conv"],
    ),
    "read in the middle": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", h := n("Conv", "x", "a"), "b")), n("Relu", h)],
        ["Conv", "Conv", "Relu"],
    ),
    "an output in the middle": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", h := n("Conv", "x", "a"), "b")), h],
        ["Conv", "Conv"],
    ),
    "A with a stride": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", n("Conv", "x", "a", strides=[5, 5]), "b"))],
        ["Add", "Conv", "Conv"],
    ),
    "apart": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", n("Relu", n("Conv", "x", "a")), "b"))],
        ["Conv", "Conv", "Relu"],
    ),
    "A of an operator": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", n("Concat", "h", axis=1), "b"))],
        ["Concat", "Conv"],
    ),
    "A frozen": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", n("Conv", "x", n.weight("v", 2, 4, 1, 1)), "b"))],
        ["Conv"],
    ),
    "B frozen": (
        lambda n: [n("Add", conv(n, "x", "w"), n("Conv", n("Conv", "x", "a"), n.weight("v", 4, 2, 1, 1)))],
        ["Conv"],
    ),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_what_of_an_adapter_is_computed_on_rows(case: str) -> None:
    """Its delta where it is added to a product, and both kernels are the adapter's."""
    build, stays = ADAPTERS[case]
    model = model_of(build, IMAGE)
    image_rows.images_in_rows(model.graph)
    assert on_images(model) == sorted(stays)


def test_one_large_image_stays_though_its_gate_is_a_row() -> None:
    """Of one image the gate is one number for each channel."""
    image = (1, 4, 20, 20)
    model = model_of(lambda n: [n("Mul", "x", conv(n, n("GlobalAveragePool", "x"), "w"))], image)
    image_rows.images_in_rows(model.graph)
    assert on_images(model) == ["GlobalAveragePool", "Mul"]


def test_numbers_of_channels_alone_are_no_image() -> None:
    model = model_of(lambda n: [conv(n, n("Add", n.weight("s", 4, 1, 1), n.weight("t", 1, 1, 1, 1)), "w")], IMAGE)
    image_rows.images_in_rows(model.graph)
    assert on_images(model) == ["Add"]


@pytest.mark.parametrize("kind", ["Relu", "GlobalAveragePool"])
def test_operators_of_another_domain_stay(kind: str) -> None:
    model = model_of(lambda n: [n(kind, conv(n, "x", "w"))], IMAGE)
    model.graph.node(1).domain = "com.example"
    image_rows.images_in_rows(model.graph)
    assert on_images(model) == [kind]


def test_images_of_unknown_channels_stay() -> None:
    """Though a kernel tells how many it reads: an adapter's too."""

    def build(n: Net) -> list[str]:
        x = n("Relu", "x")
        return [n("Add", conv(n, conv(n, x, "three", 3, 3, pads=[1] * 4), "w"), delta(n, x)), conv(n, x, "v")]

    model = model_of(build, ("n", "c", 5, 5))
    image_rows.images_in_rows(model.graph)
    assert on_images(model) == ["Conv"] * 4 + ["Relu"]


def test_a_large_image_stays_though_it_is_added_to_a_row() -> None:
    def build(n: Net) -> list[str]:
        return [n("Add", conv(n, n("GlobalAveragePool", "x"), "w"), delta(n, "x"))]

    model = model_of(build, ("n", 4, 20, 20))
    image_rows.images_in_rows(model.graph)
    assert on_images(model) == ["Add", "Conv", "Conv", "GlobalAveragePool"]


def test_what_nothing_reads_stays() -> None:
    def build(n: Net) -> list[str]:
        n("Relu", "x")
        return [conv(n, "x", "w")]

    model = model_of(build, IMAGE)
    image_rows.images_in_rows(model.graph)
    assert on_images(model) == ["Relu"]


@pytest.mark.parametrize(
    ("image", "rows"), [(("n", 4, 1, 1), "n"), (("n", 4, 5, 5), "n*25"), ((3, 4, 5, 5), 75), ((3, 4, 1, 1), 3)]
)
def test_the_number_of_rows_is_told(image: tuple[int | str, ...], rows: int | str) -> None:
    """Of images of one place it is that of the images."""
    model = model_of(lambda n: [conv(n, "x", "w")], image)
    image_rows.images_in_rows(model.graph)
    (product,) = [node for node in model.graph if node.op_type == "Gemm"]
    assert tuple(dims(product.outputs[0])) == (rows, 4)


SIZES: dict[tuple[int | str, ...], bool] = {
    ("n", 4, 14, 14): True,
    ("n", 4, 10, 20): False,
    ("n", 4, 1, 1): True,
    ("n", 4, 5, "w"): False,
    ("n", 4, "h", "w"): False,
}


@pytest.mark.parametrize("image", SIZES)
def test_images_of_less_than_200_places_are_rows(image: tuple[int | str, ...]) -> None:
    model = model_of(lambda n: [conv(n, "x", "w")], image)
    image_rows.images_in_rows(model.graph)
    assert on_images(model) == ([] if SIZES[image] else ["Conv"])


@pytest.mark.parametrize(("shape", "small"), [(None, False), (["n", 4], False), (["n", 4, 5], True)])
def test_an_image_has_places(shape: list[int | str] | None, small: bool) -> None:
    assert image_rows.is_small(ir.Value(name="x", shape=None if shape is None else ir.Shape(shape))) is small


@pytest.mark.parametrize(("domain", "point"), [("", True), ("com.example", False)])
def test_a_convolution_of_another_domain_is_none(domain: str, point: bool) -> None:
    x, w = (ir.Value(name=name, shape=ir.Shape(shape)) for name, shape in (("x", IMAGE), ("w", [4, 4, 1, 1])))
    assert image_rows.is_point(ir.Node(domain, "Conv", [x, w])) is point
