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
        for how in ("none", "add")
        for axis, index in [(0, [[0, 1, 2, 0], [1, 0, -2, 2]]), (1, [[3], [0], [-1]])]
    ),
    Case("ScatterElements", [(3, 4), np.array([[1, 1, 1, 1]] * 2), (2, 4)], {"reduction": "add"}, label="repeated"),
    *(
        Case("ScatterND", [(3, 4, 2), np.array(index), shape], {"reduction": how}, label=str(index))
        for how in ("none", "add")
        for index, shape in [([[0, 1], [2, 3]], (2, 2)), ([[2], [0]], (2, 4, 2))]
    ),
    Case("ScatterND", [(3, 4), np.array([[1], [1]]), (2, 4)], {"reduction": "add"}, label="repeated"),
    *(
        Case("TopK", [(3, 5), axes(2)], {"axis": axis, "largest": largest}, outputs=2, cotangents=(0,))
        for axis in (0, -1)
        for largest in (0, 1)
    ),
]
