"""Reductions and running sums."""

import numpy as np

from tests.gradients.case import Case, axes

REDUCTIONS = {
    "ReduceSum": {},
    "ReduceMean": {},
    "ReduceMax": {},
    "ReduceMin": {},
    "ReduceProd": {},
    "ReduceL1": {},
    "ReduceL2": {},
    "ReduceSumSquare": {},
    "ReduceLogSum": {0: 0.3},
    "ReduceLogSumExp": {},
}
_REDUCED_AXES = [axes(1), axes(-1), axes(0, 2), axes(2, -3), None]
_ZEROS = np.array([[1.0, 0.0, 2.0, 0.5], [0.0, 3.0, 0.0, 2.0], [3.0, 0.0, 0.0, 1.0], [1.0, 2.0, 3.0, 0.0]])

CASES = [
    *(
        Case(
            op,
            [(2, 3, 4)] if which is None else [(2, 3, 4), which],
            {"keepdims": keep},
            positive=positive,
            label=str(which),
        )
        for op, positive in REDUCTIONS.items()
        for which in _REDUCED_AXES
        for keep in (0, 1)
    ),
    *(
        Case(op, [(2, 3)], {"noop_with_empty_axes": 1}, positive=positive)
        for op, positive in REDUCTIONS.items()
        if op not in ("ReduceL1", "ReduceL2", "ReduceProd")  # the reference evaluator reduces all axes there
    ),
    *(
        Case(op, [(2, 3), axes()], {"keepdims": keep}, positive={0: 0.3}, label="empty")
        for op in ("ReduceSum", "ReduceMean")
        for keep in (0, 1)
    ),
    *(Case(op, [(3, 2), axes(1)], within={0: (1, 1)}, label="ties") for op in ("ReduceMax", "ReduceMin")),
    Case(
        "ReduceProd", [np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]]), axes(1)], wrt=(0,), label="zeros"
    ),
    *(
        Case(op, [(2, 3, 4), which], {"keepdims": keep}, positive=positive, label=str(which), computed=(1,))
        for op, positive in REDUCTIONS.items()
        for which, keep in [(axes(1), 0), (axes(0, -1), 1), (axes(2, -3), 0)]
    ),
    *(Case(op, [(), axes()], positive={0: 0.3}) for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2")),
    *(
        Case("CumProd", [(2, 3, 4), np.array(axis)], {"exclusive": exclusive, "reverse": reverse}, label=str(axis))
        for axis in (0, -1)
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    *(
        Case("CumProd", [_ZEROS, np.array(1)], {"exclusive": exclusive, "reverse": reverse}, wrt=(0,), label="zeros")
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    *(
        Case("CumSum", [(2, 3, 4), np.array(axis)], {"exclusive": exclusive, "reverse": reverse}, label=str(axis))
        for axis in (0, 1, -1)
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
]
