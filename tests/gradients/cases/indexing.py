"""Reading and writing at indices."""

import numpy as np

from tests.gradients.case import Case, axes

CASES = [
    *(
        Case("Gather", [(3, 4, 5), np.array(index)], {"axis": axis}, label=str(index))
        for axis, index in [
            (0, 0),
            (1, 2),
            (1, -1),
            (-1, [1]),
            (0, [0, 2, 0]),
            (1, [3, -1, 0, 0]),
            (2, [[0, 4], [4, -2]]),
            (-2, [[1]]),
        ]
    ),
    Case("Gather", [(3, 4, 5), np.array([[1, 0], [2, 2]])]),
    Case("Gather", [(4,), np.array(2)]),
    *(
        Case("GatherElements", [(3, 4), np.array(index)], {"axis": axis}, label=str(index))
        for axis, index in [(0, [[0, 1, 2, 0], [0, 0, -1, 2]]), (1, [[3], [0], [-1]]), (1, [[3, 3], [0, 1], [1, 1]])]
    ),
    *(
        Case("GatherND", [(3, 4, 2), np.array(index)], {"batch_dims": batch}, label=str(index))
        for batch, index in [
            (0, [[0, 1], [2, 3], [0, 1]]),
            (0, [[[2]], [[2]]]),
            (1, [[1], [3], [0]]),
            (2, [[[1]] * 4] * 3),
        ]
    ),
    *(
        Case(
            "ScatterElements",
            [(3, 4), np.array(index), np.shape(index)],
            {"axis": axis, "reduction": how},
            label=str(index),
        )
        for how in ("none", "add", "mul", "max", "min")
        for axis, index in [(0, [[0, 1, 2, 0], [1, 0, -2, 2]]), (1, [[3], [0], [-1]])]
    ),
    *(
        Case("ScatterElements", [(3, 4), np.array([[1, 1, -2, 1]] * 2), (2, 4)], {"reduction": how}, label="repeated")
        for how in ("add", "mul", "max", "min")
    ),
    *(
        Case("ScatterND", [(3, 4, 2), np.array(index), shape], {"reduction": how}, label=str(index))
        for how in ("none", "add", "mul", "max", "min")
        for index, shape in [
            ([[0, 1], [2, -1]], (2, 2)),
            ([[2], [0]], (2, 4, 2)),
            ([[[0, 1, 1]], [[2, -1, 0]]], (2, 1)),
        ]
    ),
    *(
        Case("ScatterND", [(3, 4), np.array([[1], [1]]), (2, 4)], {"reduction": how}, within={2: (u, u)}, label="ties")
        for how, u in (("max", 9), ("min", -9))
    ),
    *(
        Case("ScatterND", [(3, 4), np.array([[1], [-2]]), (2, 4)], {"reduction": how}, label="repeated")
        for how in ("add", "mul", "max", "min")
    ),
    *(
        Case(
            op,
            [(3, 2), index, np.array([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])],
            {"reduction": "mul"},
            wrt=(0, 2),
            label="zeros",
        )
        for op, index in [
            ("ScatterElements", axes(*[0, 1] * 3).reshape(3, 2)),
            ("ScatterND", axes(0, 1, 0).reshape(3, 1)),
        ]
    ),
    *(
        Case("TopK", [(3, 5), axes(2)], {"axis": axis, "largest": largest}, outputs=2, cotangents=(0,))
        for axis in (0, -1)
        for largest in (0, 1)
    ),
    Case("TopK", [(3, 5), axes(2)], outputs=2, cotangents=(0,), computed=(1,)),
    Case("TopK", [(3, 5), axes(5)], {"axis": 1, "sorted": 0}, outputs=2, cotangents=(0,), not_run="the order is free"),
    *(
        Case("OneHot", [np.array(index), depth, (2,)], {} if axis is None else {"axis": axis}, label=str(index))
        for index in ([0, 2, 5, -1], [[1, 3], [0, -4]])
        for depth in (np.array(4), axes(4))
        for axis in (None, 0, -1)
    ),
    Case("OneHot", [np.array([0, 1]), np.array(3), (2,)], {"axis": 0}, computed=(0, 1)),
    *(
        Case("TensorScatter", [(2, 3, 5, 4), (2, 3, 2, 4), *start], how)
        for start, how in [([], {}), ([axes(1, 3)], {}), ([axes(4, 0)], {"mode": "circular"})]
    ),
    Case("TensorScatter", [(2, 5), (2, 3), axes(2, 4)], {"axis": 1, "mode": "circular"}),
]
