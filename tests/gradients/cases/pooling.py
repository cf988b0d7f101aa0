"""Pools: plain, global, and their inverse."""

import numpy as np

from tests.gradients.case import Case, axes

_WINDOWS = [
    ((2, 3, 7), {"kernel_shape": [3]}),
    ((2, 3, 8), {"kernel_shape": [2], "strides": [2]}),
    ((2, 3, 7), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    ((1, 2, 6, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((1, 2, 7, 8), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    ((1, 2, 7, 8), {"kernel_shape": [2, 3], "strides": [2, 3], "pads": [1, 0, 1, 2]}),
    ((1, 2, 7, 8), {"kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1}),
    ((2, 2, 6, 7), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ((2, 2, 6, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 2, 6, 7), {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [0, 1, 2, 0], "ceil_mode": 1}),
    ((2, 2, 6, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((2, 2, 6, 7), {"kernel_shape": [1, 2], "strides": [3, 3]}),
    ((2, 2, 6, 7), {"kernel_shape": [3, 2], "dilations": [2, 3]}),
    ((2, 2, 7, 8), {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [2, 1], "pads": [2, 1, 1, 0]}),
    ((2, 2, 7, 7), {"kernel_shape": [2, 2], "dilations": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ((2, 2, 7, 8), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}),
    ((2, 2, 7, 8), {"kernel_shape": [2, 4], "auto_pad": "SAME_LOWER"}),
    ((2, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((2, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((2, 2, 7, 8), {"kernel_shape": [2, 3], "strides": [2, 3], "auto_pad": "SAME_LOWER"}),
    ((2, 2, 7, 8), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID", "ceil_mode": 1}),
    ((1, 2, 4, 5, 6), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    ((1, 2, 4, 5, 6), {"kernel_shape": [3, 2, 3], "strides": [1, 2, 1], "pads": [1, 0, 1, 1, 1, 0]}),
]

CASES = [
    *(Case("MaxPool", [shape], how) for shape, how in _WINDOWS),
    Case("MaxPool", [(2, 2, 6, 8)], {"kernel_shape": [2, 2], "strides": [2, 2]}, outputs=2, cotangents=(0,)),
    *(
        Case(
            "MaxPool",
            [(2, 2, 6, 7)],
            {"kernel_shape": [3, 3], "strides": [2, 2], "storage_order": order},
            outputs=outputs,
            cotangents=(0,),
        )
        for order in (0, 1)
        for outputs in (1, 2)
        if order or outputs == 2
    ),
    *(Case("AveragePool", [shape], how) for shape, how in _WINDOWS),
    *(
        Case("AveragePool", [shape], {**how, "count_include_pad": 1})
        for shape, how in _WINDOWS
        if "pads" in how or "auto_pad" in how or "ceil_mode" in how
    ),
    *(Case("LpPool", [shape], {**how, "p": 1 + i % 3}) for i, (shape, how) in enumerate(_WINDOWS)),
    Case("LpPool", [(1, 2, 6, 6)], {"kernel_shape": [2, 2]}, label="default p"),
    Case("LpPool", [(1, 2, 6, 6)], {"kernel_shape": [3, 3], "strides": [2, 2], "p": 4}),
    *(Case(name, [shape]) for name in ("GlobalAveragePool", "GlobalMaxPool") for shape in ((2, 3, 5), (2, 3, 4, 5))),
    Case("GlobalAveragePool", [(2, 3, 2, 3, 4)]),
    Case("GlobalMaxPool", [(2, 3, 2, 3, 4)]),
    Case("GlobalMaxPool", [(2, 3, 2)], within={0: (1, 1)}, label="ties"),
    *(Case("GlobalLpPool", [(2, 3, 4, 5)], {"p": p}) for p in (1, 2, 3, 4, 5)),
    Case("GlobalLpPool", [(2, 3, 5)]),
    Case(
        "MaxUnpool",
        [(1, 1, 2, 2), np.array([[[[5, 7], [8, 10]]]])],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
    Case(
        "MaxUnpool",
        [(1, 2, 2), np.array([[[1, 2], [5, 8]]]), axes(1, 2, 5)],
        {"kernel_shape": [2], "strides": [2]},
        label="output_shape",
    ),
    Case(
        "MaxRoiPool",
        [
            (3, 3, 6, 7),
            np.array([[0, 1, 0, 5, 4], [1, 0, 2, 6, 5], [0, 3, 3, 3, 3], [1, -2, 4, 3, 9], [1, 2, 1, 6, 5.0]]),
        ],
        {"pooled_shape": [2, 3]},
    ),
    Case(
        "MaxRoiPool",
        [(2, 2, 5, 6), np.array([[1, 3, 1, 17, 16], [0, 0, 0, 22, 18], [1, 8, -40, 9, -30.0]])],
        {"pooled_shape": [3, 2], "spatial_scale": 0.25},
        label="outside",
    ),
]
