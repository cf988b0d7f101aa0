"""Convolutions and pools whose sizes, windows and padding are drawn at random."""

from typing import cast

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgelora_tools.reference import evaluator
from tests.gradients.case import Case
from tests.gradients.checker import build, check, forward, run_forward, sample_inputs

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
POOLS = ["MaxPool", "AveragePool", "LpPool"]


@st.composite
def windows(draw, overhang: bool) -> tuple[list[int], dict]:
    """The sizes of an image, and a window that has a place on it."""
    axes = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    kernel, strides, dilations = each(1, 3), each(1, 3), each(1, 2)
    sizes = [d * (k - 1) + 1 + n for k, d, n in zip(kernel, dilations, each(0, 4), strict=True)]
    how = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    mode = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID", ""]))
    if mode == "pads":
        how["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    elif mode:
        how["auto_pad"] = mode
    if overhang:
        how["ceil_mode"] = draw(st.integers(0, 1))
    return sizes, how


@st.composite
def convolutions(draw) -> Case:
    sizes, how = draw(windows(overhang=False))
    group, inside, outside = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    shapes = [(2, group * inside, *sizes), (group * outside, inside, *how["kernel_shape"])]
    bias = [(group * outside,)] if draw(st.booleans()) else []
    return Case("Conv", [*shapes, *bias], {**how, "group": group})


@st.composite
def transposed_convolutions(draw) -> Case:
    sizes, how = draw(windows(overhang=False))
    sizes = [min(n, 4) for n in sizes]
    group, inside, outside = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    steps = list(zip(sizes, how["kernel_shape"], how["strides"], how["dilations"], strict=True))
    how["output_padding"] = [draw(st.integers(0, max(s, d) - 1)) for _, _, s, d in steps]
    if draw(st.booleans()):
        full = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in steps]
        how["output_shape"] = [max(1, n - draw(st.integers(-2, 2))) for n in full]
        how.pop("pads", None)
    elif "pads" in how:
        how["pads"] = [min(p, 1) for p in how["pads"]]
        if any((n - 1) * s + d * (k - 1) + 1 <= 2 for n, k, s, d in steps):
            how.pop("pads")
    kernel = (group * inside, outside, *how["kernel_shape"])
    shapes = [(2, group * inside, *sizes), kernel, (group * outside,)]
    return Case("ConvTranspose", shapes, {**how, "group": group})


@st.composite
def pools(draw) -> Case:
    sizes, how = draw(windows(overhang=True))
    name = draw(st.sampled_from(POOLS))
    if name == "AveragePool":
        how["count_include_pad"] = draw(st.integers(0, 1))
    if name == "LpPool":
        how["p"] = draw(st.integers(1, 3))
    return Case(name, [(2, 2, *sizes)], how)


@few
@given(case=convolutions(), symbolic=st.booleans())
def test_convolutions(case, symbolic):
    check(case, symbolic)


@few
@given(case=transposed_convolutions(), symbolic=st.booleans())
def test_transposed_convolutions(case, symbolic):
    check(case, symbolic)


@few
@given(case=pools(), symbolic=st.booleans())
def test_pools(case, symbolic):
    check(case, symbolic)


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("how", [{"dilations": [2], "output_padding": [1]}, {"output_shape": [9]}], ids=str)
def test_a_transposed_convolution_longer_than_its_places_need(how, symbolic):
    check(Case("ConvTranspose", [(2, 2, 5), (2, 4, 3)], {"kernel_shape": [3], **how}), symbolic)


def _beyond_onnxruntime(case: Case) -> bool:
    """Whether its kernels refuse the case or leave the specification."""
    how = case.attributes
    if case.op == "ConvTranspose":
        if any(p >= s for p, s in zip(how["output_padding"], how["strides"], strict=True)):
            return True
        image, given = case.inputs[0], how.get("output_shape", [])
        assert isinstance(image, tuple)
        places = zip(
            image[2:], how["kernel_shape"], how["strides"], how["dilations"], how["output_padding"], strict=True
        )
        lengths = ((n - 1) * s + d * (k - 1) + 1 + p for n, k, s, d, p in places)
        return any(m > n for m, n in zip(given, lengths, strict=False))
    if not how.get("auto_pad", "").startswith("SAME"):
        return False
    dilated = any(d > 1 for d in how["dilations"])  # forgotten by pools, refused by Conv
    return dilated or any(k < s for k, s in zip(how["kernel_shape"], how["strides"], strict=True))  # negative pads


@few
@given(case=st.one_of(convolutions(), transposed_convolutions(), pools()))
def test_reference_is_what_onnxruntime_computes(case):
    assume(not _beyond_onnxruntime(case))
    arrays = [None if x is None else np.asarray(x, np.float32) for x in sample_inputs(case, np.random.default_rng(0))]
    xs = {f"x{i}": x for i, x in enumerate(arrays) if x is not None}
    builder, _, (y,) = forward(case, arrays, opset=21)
    builder.add_output(y, "y")
    model = ir.to_proto(ir.Model(builder.graph, ir_version=10)).SerializeToString()
    (expected,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(["y"], xs)
    np.testing.assert_allclose(run_forward(case, arrays, 21)(xs)[0], np.asarray(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "how", [{"strides": [2, 2]}, {"strides": [1, 2], "pads": [1, 0, 0, 1]}], ids=["tiles", "overlaps"]
)
@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_max_pool_of_equal_pixels_hands_on_the_whole_cotangent(how, symbolic):
    case = Case("MaxPool", [(2, 3, 6, 7)], {"kernel_shape": [2, 2], **how})
    x = np.full((2, 3, 6, 7), 0.5)
    (y,) = run_forward(case, [x])({"x0": x})
    dy = np.random.default_rng(0).standard_normal(y.shape)
    model = evaluator(build(case, [x], [y], symbolic))
    dx = np.asarray(cast(list, model.run(["grad.x0"], {"x0": x, "c0": dy}))[0])
    np.testing.assert_allclose(dx.sum(axis=(2, 3)), dy.sum(axis=(2, 3)), rtol=1e-10)
