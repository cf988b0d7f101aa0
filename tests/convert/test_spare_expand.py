"""A broadcast that is left to the operator: the same numbers, one operator less, for every shape."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora_tools.passes.spare_expand import spare_expand
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.runner import open_session

REAL = ir.TensorType(ir.DataType.FLOAT)


def model(operator: str, first: bool, narrow: tuple[int, ...], shape: tuple[int | str, ...]) -> ir.Model:
    """y = op(Expand(a, shape of x), x), with `first` in this order."""
    a = ir.Value(name="a", type=REAL, shape=ir.Shape(narrow))
    x = ir.Value(name="x", type=REAL, shape=ir.Shape(shape))
    size = ir.node("Shape", [x])
    wide = ir.node("Expand", [a, size.outputs[0]])
    wide.outputs[0].shape, wide.outputs[0].type = ir.Shape(shape), REAL
    y = ir.node(operator, [wide.outputs[0], x] if first else [x, wide.outputs[0]])
    y.outputs[0].name, y.outputs[0].shape, y.outputs[0].type = "y", ir.Shape(shape), REAL
    return ir.Model(ir.Graph([a, x], [y.outputs[0]], nodes=[size, wide, y], opset_imports={"": 21}), ir_version=10)


@settings(max_examples=40, deadline=None)
@given(
    operator=st.sampled_from(["Add", "Div", "Mul", "Sub"]), first=st.booleans(),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), ones=st.lists(st.booleans(), min_size=4, max_size=4),
    dropped=st.integers(0, 3), dynamic=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_result_is_the_same(operator, first, sizes, ones, dropped, dynamic, seed):
    rng = np.random.default_rng(seed)
    narrow = tuple(1 if one else size for one, size in zip(ones, sizes, strict=False))[min(dropped, len(sizes)) :]
    plain = model(operator, first, narrow, ("n" if dynamic else sizes[0], *sizes[1:]))
    spared = plain.clone()
    spare_expand(spared.graph)
    tidy(spared)
    assert Counter(node.op_type for node in spared.graph) == {operator: 1}
    feeds = {"a": rng.standard_normal(narrow).astype(np.float32), "x": rng.standard_normal(sizes).astype(np.float32)}
    made: list[np.ndarray] = []
    for one in (plain, spared):
        with open_session(one) as session:
            made.append(np.asarray(session.run(None, feeds)[0]))
    np.testing.assert_array_equal(made[1], made[0])


@pytest.mark.parametrize("shape", [("m", 3), (1, 3)])
def test_where_the_other_is_not_as_large_it_stays(shape):
    """The other's shape is not that of the Expand: it may be what is broadcast."""
    one = model("Mul", True, (1, 3), ("n", 3))
    one.graph.inputs[1].shape = ir.Shape(shape)
    spare_expand(one.graph)
    assert [node.op_type for node in one.graph] == ["Shape", "Expand", "Mul"]
