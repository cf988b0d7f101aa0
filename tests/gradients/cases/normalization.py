"""Normalizations."""

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
        Case("RMSNormalization", [shape, shape[axis:]], {"axis": axis, "epsilon": 0.01})
        for shape, axis in [((2, 3, 4), -1), ((2, 3, 4), 1), ((3, 4), 0)]
    ),
    Case("RMSNormalization", [(2, 3, 4), (1,)], label="broadcast"),
    *(Case("LpNormalization", [(2, 3, 4)], {"axis": axis, "p": 2}) for axis in (1, 2, -1)),
    Case("LpNormalization", [(2, 3, 4)], {"axis": 1, "p": 1}, positive={0: 0.3}),
    *(
        Case("BatchNormalization", [shape, *[shape[1:2]] * 4], {"epsilon": 0.1}, positive={4: 0.3})
        for shape in [(4, 3), (2, 3, 4), (2, 3, 2, 3)]
    ),
    *(Case("InstanceNormalization", [shape, (3,), (3,)], {"epsilon": 0.1}) for shape in [(2, 3, 4), (2, 3, 2, 3)]),
    *(
        Case("GroupNormalization", [shape, (4,), (4,)], {"num_groups": groups, "epsilon": 0.1, "stash_type": 11})
        for shape in [(2, 4, 3), (2, 4, 2, 3)]
        for groups in (1, 2, 4)
    ),
]
