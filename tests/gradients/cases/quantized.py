"""Quantized operators: codes are given as real numbers; on ONNX Runtime they are rounded and of their type."""

import ml_dtypes
import numpy as np

from tests.gradients.case import Case

_rng = np.random.default_rng(2)


def codes(dtype, *shape):
    """Random codes, over the whole range of a type of up to eight bits."""
    limits = ml_dtypes.iinfo(dtype)
    return _rng.integers(max(limits.min, -128), min(limits.max, 255) + 1, shape).astype(dtype)


def scales(*shape, size=0.1):
    """Scales between `size`/2 and 3·`size`/2."""
    return np.asarray(_rng.uniform(size / 2, 1.5 * size, shape))


def one(dtype, value):
    """A zero point."""
    return np.array(value, dtype)


def quantize(x, s, z=None, size=1.0, **rest):
    """A QuantizeLinear over numbers of which some saturate: `size` is about the largest that does not."""
    inputs = [x, s] if z is None else [x, s, z]
    label = "" if z is None else f",{z.dtype}"
    return Case("QuantizeLinear", inputs, **{"made": {0: np.uint8 if z is None else z.dtype}, "label": label} | rest)


INT8, UINT8, INT16, UINT16 = np.int8, np.uint8, np.int16, np.uint16
INT4, UINT4 = ml_dtypes.int4, ml_dtypes.uint4
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2

UNFED = "numpy has no such codes that ONNX Runtime could be fed with; test_straight_through makes them in the graph"

PER_KERNEL = "ONNX Runtime's ConvInteger takes one zero point for all kernels"

CASES: list[Case] = [
    # per tensor, of every type; with the small scales about a third saturates
    quantize((4, 5), scales(size=0.005)),
    quantize((4, 5), scales(size=0.006), one(INT8, 0)),
    quantize((4, 5), scales(size=0.006), one(INT8, -128)),
    quantize((4, 5), scales(1, size=0.006), np.array([7], INT8), attributes={"axis": 0}),
    quantize((4, 5), scales(size=0.006), one(UINT8, 128)),
    quantize((4, 5), scales(size=0.1), one(INT4, -2)),
    quantize((4, 5), scales(size=0.1), one(UINT4, 8)),
    quantize((4, 5), scales(size=2e-5), one(INT16, 5)),
    quantize((4, 5), scales(size=2e-5), one(UINT16, 32768)),
    quantize((4, 5), scales(size=0.002), one(E4M3, 0)),
    quantize((4, 5), scales(size=1e-5), one(E5M2, 0)),
    Case("QuantizeLinear", [(4, 5), scales(size=0.006)], {"output_dtype": 3}, made={0: INT8}),
    quantize((), scales(), one(INT8, 0)),
    quantize((6,), scales(6, size=0.006), codes(INT8, 6), attributes={"axis": 0}),
    # per axis, per block
    quantize((2, 3, 4), scales(3, size=0.006), codes(UINT8, 3)),
    quantize((2, 3, 4), scales(4, size=0.006), codes(INT8, 4), attributes={"axis": -1}),
    quantize((4, 6), scales(4, 3, size=0.006), codes(INT8, 4, 3), attributes={"axis": 1, "block_size": 2}),
    quantize((5, 4), scales(3, 4, size=0.1), codes(INT4, 3, 4), attributes={"axis": 0, "block_size": 2}),
    # a computed scale
    quantize((4, 5), (), one(INT8, 3), within={1: (0.005, 0.01)}),
    quantize((2, 3, 4), (3,), codes(UINT8, 3), within={1: (0.005, 0.01)}),
    quantize((2, 3, 4), (1,), within={1: (0.005, 0.01)}),
    # dequantizing
    Case("DequantizeLinear", [(4, 5), scales()], codes={0: INT8}, within={0: (-128, 127)}),
    Case("DequantizeLinear", [(4, 5), scales(), one(UINT8, 100)], codes={0: UINT8}, within={0: (0, 255)}),
    Case("DequantizeLinear", [(4, 5), scales(1), np.array([3], INT8)], codes={0: INT8}, within={0: (-128, 127)}),
    Case("DequantizeLinear", [(4, 5), scales(), one(INT4, 1)], codes={0: INT4}, not_run=UNFED, within={0: (-8, 7)}),
    Case("DequantizeLinear", [(4, 5), scales(), one(UINT4, 1)], codes={0: UINT4}, not_run=UNFED, within={0: (0, 15)}),
    Case("DequantizeLinear", [(4, 5), scales(), one(INT16, 1)], codes={0: INT16}, within={0: (-300, 300)}),
    Case("DequantizeLinear", [(4, 5), scales(), one(UINT16, 1)], codes={0: UINT16}, within={0: (0, 600)}),
    Case("DequantizeLinear", [(4, 5), scales(), one(E4M3, 0)], codes={0: E4M3}, not_run=UNFED, within={0: (-9, 9)}),
    Case("DequantizeLinear", [(4, 5), scales()], codes={0: np.int32}, within={0: (-900, 900)}, label=",int32"),
    Case("DequantizeLinear", [(), scales(), one(INT8, 1)], codes={0: INT8}, within={0: (-128, 127)}),
    Case("DequantizeLinear", [(2, 3, 4), scales(3), codes(INT8, 3)], codes={0: INT8}, within={0: (-128, 127)}),
    Case(
        "DequantizeLinear",
        [(2, 3, 4), scales(4), codes(UINT8, 4)],
        {"axis": -1},
        codes={0: UINT8},
        within={0: (0, 255)},
    ),
    Case(
        "DequantizeLinear",
        [(5, 4), scales(3, 4), codes(INT8, 3, 4)],
        {"axis": 0, "block_size": 2},
        codes={0: INT8},
        within={0: (-128, 127)},
    ),
    Case("DequantizeLinear", [(4, 5), (), one(INT8, 3)], codes={0: INT8}, within={0: (-128, 127), 1: (0.1, 0.2)}),
    Case("DequantizeLinear", [(4, 5), (5,)], codes={0: INT8}, within={0: (-128, 127), 1: (0.1, 0.2)}),
    # s and z are constants of the rule: the cotangent is that of the codes alone
    Case("DynamicQuantizeLinear", [(3, 7)], outputs=3, cotangents=(0,), made={0: UINT8, 2: UINT8}),
    Case("DynamicQuantizeLinear", [(7,)], outputs=3, cotangents=(0,), made={0: UINT8, 2: UINT8}, positive={0: 0.5}),
]


def product(op, a, b, *zeros, kinds=(UINT8, INT8), **rest):
    """A product of codes of two types; given as a shape where it is differentiated."""
    given = [(INT8, (-128, 127)), (UINT8, (0, 255))]
    limits = dict(given)
    sides = {i: kinds[i] for i, x in enumerate((a, b)) if isinstance(x, tuple)}
    within = {i: limits[kind] for i, kind in sides.items()}
    return Case(op, [a, b, *zeros], codes=sides, within=within, made={0: np.int32}, **rest)


def multiply(a, b, *zeros, **rest):
    return product("MatMulInteger", a, b, *zeros, **rest)


def convolve(x, w, *zeros, **rest):
    return product("ConvInteger", x, w, *zeros, **rest)


CASES += [
    multiply((3, 4), codes(INT8, 4, 5)),
    multiply((3, 4), codes(INT8, 4, 5), one(UINT8, 130), one(INT8, -3)),
    multiply((3, 4), codes(INT8, 4, 5), one(UINT8, 130), codes(INT8, 5)),
    multiply((2, 3, 4), codes(UINT8, 4, 5), one(UINT8, 130), np.array([128], UINT8)),
    multiply((2, 3, 4), codes(INT8, 4, 5), None, one(INT8, 1)),
    multiply((2, 3, 4), (4, 5), one(UINT8, 130), one(INT8, 1)),
    multiply((1, 3, 4), (2, 4, 5), one(UINT8, 130), one(UINT8, 9), kinds=(UINT8, UINT8)),
    multiply((2, 3, 4), (1, 4, 5), one(UINT8, 130), one(UINT8, 9), kinds=(UINT8, UINT8)),
    multiply((2, 3, 4), (2, 4, 5), one(UINT8, 130), one(UINT8, 9), kinds=(UINT8, UINT8)),
    multiply((2, 2, 3, 4), (2, 4, 5), one(UINT8, 130), one(INT8, 1)),
    multiply((3, 4), (4, 5), kinds=(INT8, INT8)),
    convolve((2, 2, 5, 6), codes(UINT8, 3, 2, 3, 2), one(UINT8, 130), one(UINT8, 120)),
    convolve(
        (2, 2, 5, 6),
        (3, 2, 3, 2),
        one(UINT8, 130),
        one(UINT8, 120),
        kinds=(UINT8, UINT8),
        attributes={"kernel_shape": [3, 2]},
    ),
    convolve((1, 2, 5, 6), codes(UINT8, 4, 1, 3, 3), attributes={"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    convolve((1, 2, 5, 6), codes(UINT8, 4, 2, 1, 1), one(UINT8, 7)),
    convolve(
        (1, 2, 5, 6),
        (4, 1, 3, 3),
        one(UINT8, 130),
        kinds=(UINT8, UINT8),
        attributes={"kernel_shape": [3, 3], "group": 2},
    ),
    convolve((1, 2, 5), codes(UINT8, 3, 2, 2), one(UINT8, 7), codes(UINT8, 3), not_run=PER_KERNEL),
]
