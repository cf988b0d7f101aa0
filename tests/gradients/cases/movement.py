"""Operators that move elements."""

import numpy as np

from tests.gradients.case import Case, axes

CASES = [
    *(Case("Reshape", [(2, 3, 4), axes(*to)], label=str(to)) for to in [(6, 4), (-1,), (0, 12), (1, 2, 3, 2, 2)]),
    *(
        Case("Reshape", [shape, axes(*to)], {"allowzero": 1})
        for shape, to in [((0, 3), (3, 0)), ((2, 0, 3), (3, 2, 0))]
    ),
    Case("Reshape", [(2, 3), axes(3, -1)], computed=(1,)),
    *(Case("Flatten", [(2, 3, 4)], {"axis": axis}) for axis in (0, 1, 2, 3, -1)),
    *(Case("Squeeze", [(1, 3, 1), axes(*which)], label=str(which)) for which in [(0,), (-1,), (0, 2)]),
    Case("Squeeze", [(1, 3, 1)]),
    *(Case("Unsqueeze", [(2, 3), axes(*which)], label=str(which)) for which in [(0,), (-1,), (1, 3)]),
    Case("Transpose", [(2, 3, 4)]),
    *(Case("Transpose", [(2, 3, 4)], {"perm": perm}) for perm in [(0, 2, 1), (2, 0, 1), (1, 2, 0)]),
    *(
        Case("Concat", shapes, {"axis": axis})
        for shapes, axis in [
            ([(2, 3), (2, 1), (2, 2)], 1),
            ([(2, 3), (2, 1)], -1),
            ([(1, 3), (4, 3)], 0),
            ([(2, 3)], 0),
        ]
    ),
    Case("Concat", [(2, 3), np.ones((2, 2)), (2, 1)], {"axis": 1}, label="constant"),
    Case("Split", [(2, 6)], {"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", [(7, 2)], {"num_outputs": 3}, outputs=3, label="uneven"),
    Case("Split", [(2, 6), axes(1, 2, 3)], {"axis": -1}, outputs=3),
    Case("Split", [(2, 6), axes(1, 0, 5)], {"axis": 1}, outputs=3, cotangents=(0, 1), computed=(1,)),
    *(
        Case("Split", [(2, 6), axes(1, 2, 3)], {"axis": 1}, outputs=3, cotangents=some, label=str(some))
        for some in [(1,), (0, 2)]
    ),
    *(
        Case("Slice", [(4, 5, 3), *(axes(*part) for part in parts)], label=str(parts))
        for parts in [
            ((1, 0), (3, 4)),
            ((1, 0, 0), (3, 5, 2)),
            ((1,), (9,), (1,)),
            ((-3, 1), (-1, 100), (1, 0)),
            ((-9,), (2,), (-1,)),
            ((0, 1), (4, 5), (0, 1), (1, 2)),
            ((-1,), (-9,), (1,), (-1,)),
            ((3, 4), (0, 0), (0, 1), (-2, -1)),
            ((1,), (-1,), (1,), (3,)),
        ]
    ),
    *(
        Case("Slice", [(4, 5, 3), *(axes(*part) for part in parts)], label=str(parts), computed=computed)
        for parts, computed in [
            (((1, 0), (3, 4)), (1, 2)),
            (((-3,), (-1,)), (1,)),
            (((1, -9), (9, -2), (0, 1)), (1,)),
            (((1, 0), (3, 4), (0, 1)), (2,)),
            (((3,), (1,), (1,)), (1, 2)),
            (((1, 0), (3, 4), (2, 0)), (3,)),
            (((1, 0), (3, 4), (2, 0), (1, 1)), (4,)),
            (((-1, 0), (-9, 4), (2, -3), (-2, 3)), (1, 2, 3, 4)),
        ]
    ),
    Case("Slice", [(4, 3), axes(9), axes(1)], label="nothing"),
    *(
        Case("Pad", [(3, 4), axes(*pads)], {"mode": mode} if mode else {}, label=str(pads), computed=computed)
        for mode in (None, "constant", "reflect", "edge", "wrap")
        for pads in [(1, 0, 2, 1), (0, 2, 0, 0), (-1, 0, 0, -2), (-1, 1, 1, -1)]
        for computed in [(), (1,)]
    ),
    Case("Pad", [(3, 4), axes(-1, 2, 2, -1), (), axes(1, 0)], label="computed", computed=(1, 3)),
    *(
        Case("CenterCropPad", [(4, 5, 3), axes(*to)], {} if which is None else {"axes": which}, label=str(to))
        for to, which in [((2, 2, 3), None), ((7, 8, 4), None), ((3, 8), [0, -2]), ((6,), [2]), ((4, 6, 1), [0, 1, 2])]
    ),
    *(
        Case("ReverseSequence", [(4, 3, 2), axes(*lengths)], how)
        for lengths, how in [((1, 2, 4), {}), ((3, 1, 2, 1), {"batch_axis": 0, "time_axis": 1})]
    ),
    *(
        Case(
            "Compress",
            [(3, 4, 2), np.array(condition, bool)],
            {} if axis is None else {"axis": axis},
            label=str(condition),
        )
        for condition, axis in [
            ([0, 1, 1], 0),
            ([1, 0, 1, 1], 1),
            ([0, 1], -2),
            ([0, 0], 2),
            ([0, 1, 1, 0, 1, 0, 0, 0, 1], None),
        ]
    ),
    Case("Compress", [(3, 4), np.array([True, False, True])], {"axis": 0}, computed=(1,)),
    Case("Pad", [(3, 4), axes(1, 2), (), axes(1)]),
    Case("Pad", [(3, 4), axes(1, 2), (1,), axes(1)]),
    Case("Pad", [(3, 4), axes(1, 2, 0, 1), (), axes(-1, 0)]),
    Case("Pad", [(3, 4), axes(1, 2), None, axes(-1)], {"mode": "edge"}),
    *(
        Case("Expand", [shape, axes(*to)], label=str(to))
        for shape, to in [((3, 1), (2, 3, 4)), ((3, 4), (3, 1)), ((), (2, 2)), ((1, 3), (1, 1)), ((2, 1, 3), (2, 5, 3))]
    ),
    Case("Expand", [(3, 1), axes(2, 1, 4)], computed=(1,)),
    *(Case("Tile", [(2, 3), axes(*r)], label=str(r)) for r in [(1, 2), (3, 1), (2, 2), (1, 1)]),
    Case("Tile", [(2, 3), axes(2, 3)], computed=(1,)),
    Case("Tile", [(), axes()], label="scalar"),
    *(
        Case("Trilu", [(2, 3, 4), *([] if k is None else [np.array(k)])], {"upper": upper}, label=str(k))
        for upper in (0, 1)
        for k in (None, -1, 1, 7, -7)
    ),
    Case("Trilu", [(3, 3), np.array(1)], computed=(1,)),
    *(Case("DepthToSpace", [(2, 8, 2, 3)], {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Case("DepthToSpace", [(1, 4, 1, 2)], {"blocksize": 2}),
    Case("SpaceToDepth", [(2, 3, 4, 6)], {"blocksize": 2}),
]
