"""Elementwise arithmetic."""

import numpy as np

from tests.gradients.case import Case, mask

CASES = [
    *(
        Case(op, [a, b])
        for op in ("Add", "Sub", "Mul", "Max", "Min", "Sum")
        for a, b in [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 4), (3, 1)), ((), (2, 3))]
    ),
    *(
        Case(op, shapes)
        for op in ("Max", "Min", "Sum")
        for shapes in ([(2, 3)], [(2, 3), (3,), (1, 1)], [(3,), (2, 3), ()])
    ),
    # in the reference evaluator the first operand of Mean must have the shape of the result
    *(Case("Mean", shapes) for shapes in ([(2, 3)], [(2, 3), (2, 3)], [(2, 3), (3,), (1, 1)], [(2, 3, 4), ()])),
    *(
        Case("Div", [a, b], positive={1: 0.5})
        for a, b in [((2, 3), (2, 3)), ((2, 3), (3,)), ((3, 1), (2, 1, 4)), ((), (2, 3)), ((2, 3), ())]
    ),
    *(Case("Pow", [(2, 3), np.array(p)], positive={0: 0.5}) for p in (2.0, 3.0, 0.5, -1.0, 1.7, -0.3, 1.0)),
    *(Case("Pow", [(2, 3), np.array(p)], label="signed") for p in (2.0, 3.0, 4.0)),
    Case("Pow", [(2, 2), np.array([2, 3])], label="int"),
    *(Case("Pow", [a, b], positive={0: 0.5}) for a, b in [((2, 3), (2, 3)), ((2, 1), (3,)), ((), (2, 2))]),
    Case("Pow", [np.array([0.0, 1.0, 2.0]), (3,)], positive={1: 0.5}, label="zero"),
    *(Case(op, [(2, 3), np.ones((2, 3))], within={0: (1, 1)}, label="ties") for op in ("Max", "Min")),
    *(
        Case("Mod", [(2, 3), b], {"fmod": 1}, within={0: (5, 9), 1: (1, 2)}, label="large")
        for b in [(2, 3), (3,), (2, 1)]
    ),
    *(Case("Mod", [a, b], {"fmod": 1}, positive={1: 0.7}) for a, b in [((2, 3), (2, 3)), ((2, 3), (3,))]),
    *(Case(op, [(2, 3)]) for op in ("Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Sinh", "Cosh", "Atan", "Asinh")),
    Case("Tan", [(2, 3)], within={0: (-1.2, 1.2)}),
    *(Case(op, [(2, 3)], within={0: (-0.9, 0.9)}) for op in ("Asin", "Acos", "Atanh")),
    *(Case(op, [(2, 3)], positive={0: 0.5}) for op in ("Sqrt", "Reciprocal", "Log")),
    Case("Acosh", [(2, 3)], positive={0: 1.2}),
    *(Case(op, [()], positive={0: 0.5}) for op in ("Sqrt", "Exp")),
    *(
        Case("Where", [mask(*c), a, b])
        for c, a, b in [((2, 3), (2, 3), (2, 3)), ((3,), (2, 1), ()), ((2, 1, 1), (3, 1), (4,)), ((2, 3), (3,), (2, 1))]
    ),
    Case("Clip", [(3, 4), np.array(-0.5), np.array(0.7)]),
    Case("Clip", [(3, 4), np.array(-0.5)]),
    Case("Clip", [(3, 4), None, np.array(0.5)]),
    Case("Clip", [(3, 4)]),
    Case("Clip", [(3, 4), (), ()], within={1: (-1.0, -0.2), 2: (0.2, 1.0)}),
    Case("Clip", [(3, 4), None, ()]),
    Case("Clip", [(3, 4), (), None]),
    Case("Clip", [(2, 5), np.array(0.3), np.array(-0.3)], label="crossed"),
    Case("Clip", [(3, 4), (), ()], within={1: (0.2, 1.0), 2: (-1.0, -0.2)}, label="crossed limits"),
    Case("Identity", [(2, 3)]),
    Case("Dropout", [(2, 3)]),
    Case("Dropout", [(2, 3), np.array(0.3), np.array(False)]),
    Case("Dropout", [(2, 3), np.array(0.3)], outputs=2, cotangents=(0,)),
    Case("Dropout", [(2, 3), np.array(0.0), np.array(True)], {"seed": 1}),
    Case("Dropout", [(2, 3), np.array(0.3), np.array(False)], computed=(1, 2)),
    *(
        Case(
            "Dropout",
            [(4, 6), np.array(ratio), np.array(True)],
            {"seed": 1},
            outputs=outputs,
            cotangents=(0,),
            computed=computed,
            not_run="for one seed ONNX Runtime draws another mask; test_dropout.py reads its mask",
        )
        for ratio, outputs, computed in [(0.3, 2, ()), (0.3, 1, ()), (0.7, 1, (1, 2))]
    ),
    Case("Cast", [(2, 3)], {"to": 11}),
    Case("CastLike", [(2, 3), np.zeros(1)]),
]
