"""Convolutions."""

from tests.gradients.case import Case

CASES = [
    Case("Conv", [(2, 3, 5), (4, 3, 3), (4,)], {"kernel_shape": [3]}),
    Case("Conv", [(2, 3, 6), (4, 3, 3)], {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    *(
        Case("Conv", [(2, 4, 5, 6), (6, 4 // group, 3, 2), (6,)], {"kernel_shape": [3, 2], "group": group, **how})
        for group, how in [
            (1, {}),
            (2, {"pads": [1, 0, 2, 1]}),
            (1, {"strides": [2, 3]}),
            (2, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            (1, {"dilations": [2, 1], "pads": [2, 1, 2, 0]}),
            (2, {"dilations": [1, 3], "strides": [2, 1], "pads": [0, 2, 1, 1]}),
            (1, {"pads": [3, 3, 3, 3]}),
        ]
    ),
    Case(
        "Conv",
        [(2, 3, 4, 5), (3, 1, 3, 3)],
        {"kernel_shape": [3, 3], "group": 3, "pads": [1, 1, 1, 1]},
        label="depthwise",
    ),
    Case("Conv", [(2, 3, 4, 4), (5, 3, 1, 1), (5,)], {"kernel_shape": [1, 1]}, label="pointwise"),
    Case("Conv", [(2, 3, 6, 6), (4, 3, 2, 2)], {"kernel_shape": [2, 2], "strides": [2, 2]}, label="patches"),
    Case("Conv", [(2, 3, 5, 5), (4, 3, 3, 3)], {"kernel_shape": [3, 3], "auto_pad": "VALID"}),
]
