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
    *(
        Case("Conv", [(2, 4, *size), (6, 4 // group, *kernel), (6,)], {"kernel_shape": kernel, "group": group, **how})
        for mode in ("SAME_UPPER", "SAME_LOWER")
        for size, kernel, group, how in [
            ((7,), [4], 1, {"auto_pad": mode}),
            ((8,), [3], 2, {"auto_pad": mode, "strides": [2]}),
            ((7,), [1], 1, {"auto_pad": mode, "strides": [2]}),
            ((7, 8), [3, 3], 1, {"auto_pad": mode, "strides": [2, 2]}),
            ((7, 8), [4, 2], 2, {"auto_pad": mode, "strides": [3, 1]}),
        ]
    ),
    Case(
        "Conv", [(1, 2, 3, 4, 5), (4, 1, 2, 3, 2), (4,)], {"kernel_shape": [2, 3, 2], "group": 2, "pads": [0, 1, 1] * 2}
    ),
    Case(
        "Conv",
        [(2, 2, 5, 4, 5), (3, 2, 2, 3, 2)],
        {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2], "dilations": [2, 1, 1], "pads": [1, 1, 0, 0, 2, 1]},
    ),
    Case(
        "Conv",
        [(1, 2, 5, 4, 6), (3, 2, 2, 2, 3)],
        {"kernel_shape": [2, 2, 3], "strides": [2, 3, 2], "auto_pad": "SAME_UPPER"},
    ),
    Case("Conv", [(2, 3, 6), (4, 3, 3)], {}, wrt=(0,), label="kernel_shape of W"),
    *(
        Case(
            "ConvTranspose",
            [(2, 4, *size), (4, 6 // group, *kernel), (6,)],
            {"kernel_shape": kernel, "group": group, **how},
        )
        for size, kernel, group, how in [
            ((5,), [3], 1, {}),
            ((4,), [4], 2, {"strides": [2], "pads": [1, 1]}),
            ((4,), [2], 1, {"strides": [3], "auto_pad": "SAME_UPPER"}),
            ((4,), [3], 1, {"strides": [2], "output_shape": [10]}),
            ((3, 4), [3, 2], 1, {}),
            ((3, 4), [3, 2], 2, {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
            ((3, 4), [3, 3], 1, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
            ((3, 4), [3, 2], 2, {"dilations": [2, 3], "pads": [0, 2, 1, 1]}),
            ((3, 4), [2, 2], 1, {"dilations": [3, 1], "strides": [2, 2], "output_padding": [1, 0]}),
            ((3, 4), [2, 2], 1, {"strides": [2, 2]}),
            ((3, 4), [3, 4], 2, {"strides": [2, 1], "auto_pad": "SAME_UPPER"}),
            ((3, 4), [3, 4], 1, {"strides": [2, 3], "auto_pad": "SAME_LOWER", "output_padding": [1, 0]}),
            ((3, 4), [3, 3], 2, {"strides": [2, 2], "auto_pad": "VALID"}),
            ((3, 4), [3, 3], 1, {"strides": [2, 3], "output_shape": [6, 11]}),
            ((3, 4), [3, 3], 1, {"strides": [2, 2], "output_shape": [6, 8], "auto_pad": "SAME_UPPER"}),
            ((3, 4), [3, 3], 2, {"strides": [3, 3], "output_shape": [8, 11], "output_padding": [2, 1]}),
            ((2, 3, 2), [2, 3, 2], 2, {"strides": [2, 1, 2], "pads": [0, 1, 1, 1, 1, 0]}),
            ((2, 3, 2), [2, 1, 3], 1, {"strides": [2, 2, 1], "dilations": [1, 1, 2], "output_padding": [1, 1, 0]}),
        ]
    ),
    Case("ConvTranspose", [(2, 3, 4, 4), (3, 2, 3, 3)], {"strides": [2, 2]}, wrt=(0,), label="kernel_shape of W"),
    Case(
        "ConvTranspose",
        [(2, 3, 4, 4), (3, 1, 2, 2)],
        {"kernel_shape": [2, 2], "strides": [2, 2], "group": 3},
        label="depthwise",
    ),
    Case(
        "Conv",
        [(2, 6, 5, 6), (2, 3, 3, 2)],
        {"kernel_shape": [3, 2], "group": 2, "pads": [1, 0, 1, 1]},
        label="few out",
    ),
    Case("Conv", [(2, 6, 7), (2, 6, 3)], {"kernel_shape": [3], "dilations": [2], "pads": [1, 3]}, label="few out"),
    Case(
        "Conv", [(2, 4, 3, 4, 5), (2, 4, 2, 3, 2), (2,)], {"kernel_shape": [2, 3, 2], "pads": [1] * 6}, label="few out"
    ),
    Case("Conv", [(2, 4, 5, 6), (2, 4, 1, 1)], {"kernel_shape": [1, 1], "strides": [2, 3], "pads": [1, 0, 0, 1]}),
    Case(
        "Conv",
        [(2, 4, 80), (6, 2, 70)],
        {"kernel_shape": [70], "group": 2, "strides": [3], "pads": [2, 1]},
        label="many taps",
    ),
    Case(
        "Conv",
        [(2, 4, 16, 17), (6, 4, 9, 8)],
        {"kernel_shape": [9, 8], "strides": [2, 3], "auto_pad": "SAME_LOWER"},
        label="many taps",
    ),
    Case(
        "ConvTranspose",
        [(2, 2, 5), (2, 4, 66)],
        {"kernel_shape": [66], "strides": [2], "pads": [3, 2]},
        label="many taps",
    ),
]
