"""Every case's forward and backward graph on ONNX Runtime in float32, as a device runs it."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgelora_tools.reference import evaluator
from tests.gradients.cases import CASES
from tests.gradients.checker import build, cotangents_of, run_forward, sample_inputs, wrt_of
from tests.gradients.surrogates import SURROGATES, limits

_LATE = {"Swish": 24, "TensorScatter": 24, "CumProd": 26}
NEWER = {"Attention": 23, "RMSNormalization": 23, "RotaryEmbedding": 23, **_LATE}
"""Operators that are newer than opset 21, the oldest that models are brought to, at which all others are tried."""


def single(x):
    """Float64 as float32; everything else as it is."""
    return np.asarray(x, np.float32) if x is not None and x.dtype == np.float64 else x


def typed(x, codes=None):
    """Codes in their type, anything else as `single` makes it."""
    return single(x) if codes is None else np.asarray(np.clip(x, *limits(codes))).astype(codes)


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_onnxruntime_agrees_with_float64(case, symbolic):
    if case.not_run:
        pytest.skip(case.not_run)
    opset = NEWER.get(case.op, 21)
    rng = np.random.default_rng(0)
    arrays = [np.round(x) if x is not None and i in case.codes else x for i, x in enumerate(sample_inputs(case, rng))]
    xs = {f"x{i}": x for i in wrt_of(case) if (x := arrays[i]) is not None}
    ys = run_forward(case, arrays, opset)(xs)
    cs = {f"c{i}": np.asarray(rng.standard_normal(ys[i].shape)) for i in cotangents_of(case)}
    names = [f"grad.x{i}" for i in wrt_of(case)]
    expected = evaluator(build(case, arrays, ys, symbolic, opset), SURROGATES).run(names, xs | cs)

    narrow = dataclasses.replace(case, attributes={k: 1 if v == 11 else v for k, v in case.attributes.items()})
    given = [single(x) if x is None else typed(x, case.codes.get(i)) for i, x in enumerate(arrays)]
    made = [typed(np.asarray(y), case.made.get(i)) for i, y in enumerate(ys)]
    model = build(narrow, given, made, symbolic, opset)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    taken = {f"x{i}": x for i in wrt_of(case) if (x := given[i]) is not None}
    grads = session.run(names, taken | {name: single(c) for name, c in cs.items()})
    for grad, exact in zip(map(np.asarray, grads), map(np.asarray, expected), strict=True):
        assert grad.dtype == np.float32
        size = max(1.0, float(np.abs(exact).max(initial=0.0)))
        np.testing.assert_allclose(grad, exact, rtol=1e-4, atol=1e-5 * size)
