"""Reductions and running sums over axes drawn at random."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.cases.reductions import REDUCTIONS
from tests.gradients.drawing import axis_of, few, ints, shapes, some_axes, try_both


@few
@given(op=st.sampled_from(sorted(REDUCTIONS)), shape=shapes(1), data=st.data())
def test_reductions(op, shape, data):
    axes = ints(data.draw(some_axes(len(shape), least=1)))
    how = {"keepdims": data.draw(st.integers(0, 1))}
    hidden = (1,) if data.draw(st.booleans()) else ()
    try_both(Case(op, [shape, axes], how, positive=REDUCTIONS[op], computed=hidden))


@few
@given(op=st.sampled_from(sorted(REDUCTIONS)), shape=shapes(0), keep=st.integers(0, 1))
def test_reductions_of_everything(op, shape, keep):
    assume(shape or op != "ReduceLogSumExp")  # the reference evaluator's takes no scalar
    try_both(Case(op, [shape], {"keepdims": keep}, positive=REDUCTIONS[op]))


@few
@given(op=st.sampled_from(["CumSum", "CumProd"]), shape=shapes(1), data=st.data())
def test_running(op, shape, data):
    axis = data.draw(axis_of(shape))
    how = {name: data.draw(st.integers(0, 1)) for name in ("exclusive", "reverse")}
    hidden = (1,) if data.draw(st.booleans()) else ()
    try_both(Case(op, [shape, np.array(axis)], how, computed=hidden))
