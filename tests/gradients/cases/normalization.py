"""Normalizations."""

import numpy as np

from tests.gradients.case import Case

CASES = [
    *(
        Case("LayerNormalization", [shape, shape[axis:], shape[axis:]], {"axis": axis})
        for shape, axis in [((2, 3, 4), -1), ((2, 3, 4), 1), ((2, 3, 4), 0), ((3, 4), -1)]
    ),
    Case("LayerNormalization", [(2, 3, 4), (4,)], {"epsilon": 0.1}),
    Case("LayerNormalization", [(2, 3, 4), (3, 1), (1, 4)], {"axis": 1}, label="broadcast"),
    Case("LayerNormalization", [(2, 3, 4), (4,), (4,)], outputs=3, cotangents=(0,)),
    *(
        Case(
            "LayerNormalization",
            [(2, 3, 4), (2, 3, 4)[axis:], (2, 3, 4)[axis:]],
            {"axis": axis},
            outputs=3,
            cotangents=some,
            wrt=(0, 1, 2) if 0 in some else (0,),
            label=str(some),
        )
        for axis in (0, 1, -1)
        for some in [(0, 1, 2), (1,), (2,), (1, 2)]
    ),
    Case("LayerNormalization", [(2, 4), (4,)], {"epsilon": 0.1}, outputs=2),
    *(
        Case("RMSNormalization", [shape, shape[axis:]], {"axis": axis, "epsilon": 0.01})
        for shape, axis in [((2, 3, 4), -1), ((2, 3, 4), 1), ((3, 4), 0)]
    ),
    Case("RMSNormalization", [(2, 3, 4), (1,)], label="broadcast"),
    *(Case("LpNormalization", [(2, 3, 4)], {"axis": axis, "p": 2}) for axis in (0, 1, 2, -1)),
    Case("LpNormalization", [(2, 3, 4)], {"axis": 1, "p": 1}, positive={0: 0.3}),
    Case("LpNormalization", [(2, 3, 4)], {"axis": -3, "p": 1}, label="signs"),
    *(Case("LpNormalization", [(4,)], {"axis": 0, "p": p}) for p in (1, 2)),
    Case("LpNormalization", [(2, 3)]),
    Case("MeanVarianceNormalization", [(2, 3, 2, 3)]),
    *(Case("MeanVarianceNormalization", [(2, 3, 4)], {"axes": axes}) for axes in ([0, 2], [1], [-1, 0], [0, 1, 2])),
    *(
        Case("LRN", [shape], {"size": size, "alpha": 0.7, "beta": 0.6, "bias": 1.2}, not_run=not_run)
        for shape, size, not_run in [
            ((2, 6, 2, 3), 3, ""),
            ((1, 3, 2, 1), 5, ""),
            ((2, 4, 1, 2), 1, ""),
            ((2, 5, 2, 2), 4, "ONNX Runtime's LRN is of an odd number of channels"),
            ((2, 5, 3), 3, "ONNX Runtime's LRN is of images"),
        ]
    ),
    Case("LRN", [(2, 5, 2, 2)], {"size": 3}),
    *(
        Case("BatchNormalization", [shape, *[shape[1:2]] * 4], {"epsilon": 0.1}, positive={4: 0.3})
        for shape in [(4, 3), (2, 3, 4), (2, 3, 2, 3)]
    ),
    *(
        Case(
            "BatchNormalization",
            [shape, (3,), (3,), np.zeros(3), np.ones(3)],
            {"epsilon": 0.1, "training_mode": 1, "momentum": 0.7},
            outputs=3,
            cotangents=(0,),
        )
        for shape in [(4, 3), (2, 3, 4), (2, 3, 2, 3)]
    ),
    *(Case("InstanceNormalization", [shape, (3,), (3,)], {"epsilon": 0.1}) for shape in [(2, 3, 4), (2, 3, 2, 3)]),
    *(
        Case("GroupNormalization", [shape, (4,), (4,)], {"num_groups": groups, "epsilon": 0.1, "stash_type": 11})
        for shape in [(2, 4, 3), (2, 4, 2, 3)]
        for groups in (1, 2, 4)
    ),
]
