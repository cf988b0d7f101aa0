"""Fourier transforms."""

import numpy as np

from tests.gradients.case import Case

CASES = [
    *(
        Case("DFT", [shape, *more], how, label="".join(f",{x}" for x in more))
        for shape, more, how in [
            ((2, 6, 2), [], {}),
            ((2, 5, 1), [], {}),
            ((2, 6, 1), [], {"onesided": 1}),
            ((2, 5, 1), [], {"onesided": 1}),
            ((2, 6, 2), [], {"inverse": 1}),
            ((4, 3, 2), [None, np.array(0)], {}),
            ((4, 3, 1), [None, np.array(-3)], {"onesided": 1}),
            ((2, 5, 1), [np.array(8), np.array(1)], {"onesided": 1}),
            ((2, 5, 1), [np.array(3), np.array(1)], {}),
            ((2, 5, 2), [np.array(4)], {}),
            ((2, 5, 2), [np.array(7), np.array(-2)], {"inverse": 1}),
            ((2, 5, 2), [np.array(3)], {"inverse": 1}),
        ]
    ),
    Case("DFT", [(2, 5, 2), np.array(7)], computed=(1,)),
    *(
        Case("DFT", [shape, *more], {"inverse": 1, "onesided": 1}, label="".join(f",{x}" for x in more))
        for shape, more in [
            ((2, 5, 2), []),
            ((2, 4, 2), [np.array(7), np.array(1)]),
            ((2, 4, 2), [np.array(6), np.array(1)]),
            ((2, 4, 2), [np.array(4), np.array(1)]),
        ]
    ),
    *(
        Case("STFT", [shape, np.array(step), *more], how)
        for shape, step, more, how in [
            ((2, 16, 1), 4, [(8,)], {}),
            ((2, 15, 1), 3, [None, np.array(5)], {"onesided": 0}),
            ((1, 16, 1), 4, [(6,), np.array(6)], {"onesided": 1}),
            ((2, 12, 2), 5, [(4,)], {"onesided": 0}),
        ]
    ),
    Case("STFT", [(2, 7, 1), np.array(1)], not_run="ONNX Runtime wants a window or a length"),
]
