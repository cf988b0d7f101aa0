"""Resampling drawn at random: sizes, modes, points, regions; and the reference evaluator against the runtime."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.cases.resampling import CASES, MAPPINGS, NEAREST, between, deform, scales
from tests.gradients.checker import build, forward, run_forward, sample_inputs, wrt_of
from tests.gradients.drawing import computed, few, ints, some_axes, try_both

fewer = settings(few, max_examples=8)
SIDES = st.integers(1, 6)


@few
@given(
    shape=st.lists(SIDES, min_size=1, max_size=4).map(tuple),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    data=st.data(),
)
def test_resize(shape, mode, data):
    on = data.draw(some_axes(len(shape), least=1))
    how: dict = {"mode": mode, "axes": on, "coordinate_transformation_mode": data.draw(st.sampled_from(MAPPINGS))}
    if mode == "nearest":
        how["nearest_mode"] = data.draw(st.sampled_from(NEAREST))
    if mode == "cubic":
        how |= {
            "exclude_outside": data.draw(st.integers(0, 1)),
            "cubic_coeff_a": data.draw(st.sampled_from([-0.5, -0.75])),
        }
    if mode != "nearest":
        how["antialias"] = data.draw(st.integers(0, 1))
    roi = None
    if data.draw(st.booleans()):
        how |= {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 1.5}
        roi = np.array([data.draw(st.sampled_from([v - 0.2, v, v + 0.15])) for v in [0.0] * len(on) + [1.0] * len(on)])
    if data.draw(st.booleans()):
        by = [data.draw(st.integers(-(-4 // shape[a]), 10)) / 4 for a in on]
        inputs = [shape, roi, scales(*by)]
    else:
        how["keep_aspect_ratio_policy"] = data.draw(st.sampled_from(["stretch", "not_larger", "not_smaller"]))
        inputs = [shape, roi, None, ints([data.draw(st.integers(3, 9)) for _ in on])]
    hidden = data.draw(computed(*(i for i in (1, 2, 3) if i < len(inputs) and inputs[i] is not None)))
    try_both(Case("Resize", inputs, how, computed=hidden))


@fewer
@given(
    sizes=st.lists(st.integers(2, 4), min_size=2, max_size=3).map(tuple),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    align=st.integers(0, 1),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_grid_sample(sizes, padding, align, seed, data):
    mode = data.draw(st.sampled_from(["nearest", "linear", "cubic"] if len(sizes) == 2 else ["nearest", "linear"]))
    points = tuple(data.draw(st.integers(1, 3)) for _ in sizes)
    batch, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    grid = between(-6, 9, sizes, (batch, *points), align, seed)
    how = {"mode": mode, "padding_mode": padding, "align_corners": align}
    try_both(Case("GridSample", [(batch, channels, *sizes), grid], how, wrt=(0,) if mode == "nearest" else (0, 1)))


@fewer
@given(sizes=st.lists(st.integers(2, 5), min_size=2, max_size=3), align=st.integers(0, 1), batch=st.integers(1, 3))
def test_affine_grid(sizes, align, batch):
    r = len(sizes)
    try_both(Case("AffineGrid", [(batch, r, r + 1), ints([batch, 1, *sizes])], {"align_corners": align}))


@fewer
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 2), SIDES, SIDES),
    count=st.integers(0, 4),
    ratio=st.integers(0, 3),
    mode=st.sampled_from(["avg", "max"]),
    pixel=st.sampled_from(["half_pixel", "output_half_pixel"]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_roi_align(shape, count, ratio, mode, pixel, seed, data):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-3, 6, (count, 2))
    rois = np.concatenate([corner, corner + rng.uniform(-1 if ratio else 0.1, 8, (count, 2))], axis=1)
    how = {
        "mode": mode,
        "sampling_ratio": ratio,
        "coordinate_transformation_mode": pixel,
        "spatial_scale": data.draw(st.sampled_from([1.0, 0.5, 1.25])),
        "output_height": data.draw(st.integers(1, 3)),
        "output_width": data.draw(st.integers(1, 3)),
    }
    inputs = [shape, rois, ints(rng.integers(0, shape[0], count))]
    try_both(Case("RoiAlign", inputs, how, wrt=(0,), computed=data.draw(computed(1, 2))))


@few
@given(axes=st.integers(2, 3), data=st.data())
def test_col2im(axes, data):
    def draw(low, high, count=axes):
        return [data.draw(st.integers(low, high)) for _ in range(count)]

    block, blocks, strides, dilations, pads = draw(1, 3), draw(1, 3), draw(1, 3), draw(1, 2), draw(0, 1, 2 * axes)
    image = [
        max((n - 1) * s + (k - 1) * d + 1 - before - after, 1)
        for n, s, k, d, before, after in zip(blocks, strides, block, dilations, pads[:axes], pads[axes:], strict=True)
    ]
    padded = [i + before + after for i, before, after in zip(image, pads[:axes], pads[axes:], strict=True)]
    reach = [(k - 1) * d for k, d in zip(block, dilations, strict=True)]
    count = int(np.prod([(p - r - 1) // s + 1 for p, r, s in zip(padded, reach, strides, strict=True)]))
    shape = (data.draw(st.integers(1, 2)), 2 * int(np.prod(block)), count)
    how = {"strides": strides, "dilations": dilations, "pads": pads}
    try_both(Case("Col2Im", [shape, ints(image), ints(block)], how, computed=data.draw(computed(1, 2))))


@settings(few, max_examples=4)
@given(group=st.sampled_from([1, 2]), offset_group=st.sampled_from([1, 2]), data=st.data())
def test_deform_conv(group, offset_group, data):
    kernel, strides, dilations = ([data.draw(st.integers(1, 2)) for _ in range(2)] for _ in range(3))
    pads, out = [data.draw(st.integers(0, 1)) for _ in range(4)], [data.draw(st.integers(1, 2)) for _ in range(2)]
    size = tuple(
        max((o - 1) * s + (k - 1) * d + 1 - pads[a] - pads[a + 2], 1)
        for a, (o, s, k, d) in enumerate(zip(out, strides, kernel, dilations, strict=True))
    )
    out = [
        (n + pads[a] + pads[a + 2] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1 for a, n in enumerate(size)
    ]
    how = {"group": group, "offset_group": offset_group, "strides": strides, "dilations": dilations, "pads": pads}
    bias, masked = data.draw(st.booleans()), data.draw(st.booleans())
    try_both(deform(size, tuple(kernel), tuple(out), how, batch=1, channels=2, makes=2, bias=bias, masked=masked))


def run_single(model: ir.Model, xs):
    """The outputs of a model on ONNX Runtime, with inputs in float32."""
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.float32(x) for name, x in xs.items()})


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("nearest", NEAREST)
@pytest.mark.parametrize("by", [2, 3, 0.5, 1.75])
def test_the_mapping_that_left_the_standard_is_transposed(nearest, by, symbolic):
    """tf_half_pixel_for_nn, of opset 11, which ONNX Runtime knows and the reference does not: <dX, v> = <c, op(v)>."""
    rng = np.random.default_rng(0)
    how = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": nearest}
    case = Case("Resize", [(1, 2, 5, 6), None, scales(1, 1, by, by)], how)
    arrays = [np.float32(rng.standard_normal((1, 2, 5, 6))), None, case.inputs[2]]
    builder, _, (y,) = forward(case, arrays, opset=21)
    builder.add_output(y, "y")
    (y,) = map(np.asarray, run_single(ir.Model(builder.graph, ir_version=10), {"x0": arrays[0]}))
    c = rng.standard_normal(y.shape)
    outputs = run_single(build(case, arrays, [y], symbolic, 21), {"x0": arrays[0], "c0": c})
    np.testing.assert_allclose(np.sum(np.asarray(outputs[1]) * arrays[0]), np.sum(c * y), rtol=1e-4)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.op in ("GridSample", "AffineGrid", "DeformConv")], ids=lambda case: case.id
)
def test_the_reference_computes_what_onnx_runtime_does(case):
    arrays = sample_inputs(case, np.random.default_rng(0))
    xs = {f"x{i}": x for i in wrt_of(case) if (x := arrays[i]) is not None}
    (expected,) = run_forward(case, arrays, 21)(xs)
    narrow = [np.asarray(x, np.float32) if x is not None and x.dtype == np.float64 else x for x in arrays]
    builder, _, (y,) = forward(case, narrow, opset=21)
    builder.add_output(y, "y")
    (y,) = run_single(ir.Model(builder.graph, ir_version=10), xs)
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-4, atol=1e-5)
