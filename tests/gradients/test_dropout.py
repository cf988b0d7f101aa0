"""Dropout in training mode on ONNX Runtime: its gradient goes through the mask that the node has drawn."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.gradients.case import Case
from tests.gradients.checker import build

X = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("computed", [(), (1, 2)], ids=["constant", "computed"])
@pytest.mark.parametrize("ratio", [0.25, 0.6, None])
def test_gradient_goes_through_the_mask_that_was_drawn(ratio, computed, symbolic):
    given = None if ratio is None else np.array(ratio, np.float32)
    arrays = [X, given, np.array(True)]
    case = Case("Dropout", [X.shape, *arrays[1:]], outputs=2, cotangents=(0,), computed=computed)
    model = build(case, arrays, [X, np.ones(X.shape, bool)], symbolic, opset=21)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    c = np.random.default_rng(1).standard_normal(X.shape).astype(np.float32)
    masks = []
    for _ in range(2):
        y, mask, grad = map(np.asarray, session.run(["y0", "y1", "grad.x0"], {"x0": X, "c0": c}))
        share = 0.5 if ratio is None else ratio
        assert abs(1 - mask.mean() - share) < 0.1
        np.testing.assert_allclose(y, X * mask / (1 - share), rtol=1e-5)
        np.testing.assert_allclose(grad, c * mask / (1 - share), rtol=1e-5)
        masks.append(mask)
    assert (masks[0] != masks[1]).any()
