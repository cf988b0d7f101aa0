"""Cases of quantized operators: codes, scales and zero points as a quantization tool would write them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tests.expansions.case import Case

_rng = np.random.default_rng(3)
INT8, UINT8 = np.int8, np.uint8
STANDARD = ""


def codes(dtype: Any, *shape: int) -> np.ndarray:
    """Random codes over the whole range; of int8, half of it.

    Without VNNI, ONNX Runtime's products of uint8 and int8 saturate sums of two at 16 bits: its tools call that
    range reduced.
    """
    info = np.iinfo(dtype)
    if dtype == INT8:
        return _rng.integers(-64, 64, shape).astype(dtype)
    return _rng.integers(info.min, info.max + 1, shape).astype(dtype)


def codes4(*shape: int) -> np.ndarray:
    return _rng.integers(0, 16, shape).astype(ml_dtypes.uint4)


def ids(*shape: int) -> np.ndarray:
    return _rng.integers(0, 3, shape)


def s(*values: float, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A scale, or several."""
    return np.array(values, np.float32).reshape((() if len(values) == 1 else (-1,)) if shape is None else shape)


def z(value: int, dtype: Any = UINT8, shape: tuple[int, ...] = ()) -> np.ndarray:
    """A zero point."""
    return np.full(shape, value, dtype)


def real(*shape: int) -> np.ndarray:
    return _rng.standard_normal(shape).astype(np.float32)


def bytes_of(bits: int, n: int, k: int, block: int) -> np.ndarray:
    return codes(UINT8, n, -(-k // block), block * bits // 8)


_X = codes(UINT8, 2, 4, 6, 5)
_XS, _ROWS = (_X, s(0.02), z(120)), (codes(UINT8, 2, 3, 4), s(0.02), z(120))
_TO = (s(0.05), z(100))
_IMAGE = (codes(UINT8, 2, 4, 6, 5), s(0.02), z(120))


QUANTIZED = [
    *(
        Case("QLinearMatMul", inputs, domain=STANDARD, constants=tuple(range(1, 8)), label=label)
        for label, inputs in [
            ("", [*_ROWS, codes(INT8, 4, 5), s(0.01), z(0, INT8), *_TO]),
            ("uint8", [*_ROWS, codes(UINT8, 4, 5), s(0.01), z(128), *_TO]),
            ("columns", [*_ROWS, codes(INT8, 4, 5), s(0.01, 0.02, 0.005, 0.03, 0.01), codes(INT8, 5), *_TO]),
            ("ones", [codes(UINT8, 3, 4), s(0.02, shape=(1,)), z(7, shape=(1,)), codes(INT8, 4, 5),
                      s(0.01, shape=(1,)), z(0, INT8, (1,)), s(0.05, shape=(1,)), z(90, shape=(1,))]),
        ]
    ),
    Case("QLinearMatMul", [*_ROWS, codes(UINT8, 2, 4, 5), s(0.01), z(128), *_TO], domain=STANDARD),
    *(
        Case("QLinearConv", inputs, attributes, domain=STANDARD, constants=tuple(range(1, 9)), label=label)
        for label, inputs, attributes in [
            ("", [*_XS, codes(INT8, 3, 4, 3, 3), s(0.01), z(0, INT8), *_TO], {}),
            ("bias", [*_XS, codes(INT8, 3, 4, 3, 3), s(0.01), z(0, INT8), *_TO, codes(np.int16, 3).astype(np.int32)],
             {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
            ("kernels", [*_XS, codes(INT8, 4, 2, 3, 3), s(0.01, 0.02, 0.005, 0.03), z(0, INT8, (4,)), *_TO,
                         codes(np.int16, 4).astype(np.int32)], {"group": 2}),
        ]
    ),
    *(
        Case("QGemm", inputs, attributes, constants=tuple(range(1, 9)), label=label)
        for label, inputs, attributes in [
            ("", [codes(UINT8, 3, 4), s(0.02), z(120), codes(INT8, 4, 5), s(0.01), z(0, INT8), None, *_TO], {}),
            ("real", [codes(UINT8, 3, 4), s(0.02), z(120), codes(INT8, 5, 4), s(0.01), z(0, INT8),
                      codes(np.int16, 5).astype(np.int32)], {"transB": 1, "alpha": 0.5}),
            ("columns", [codes(UINT8, 3, 4), s(0.02), z(120), codes(INT8, 4, 5), s(0.01, 0.02, 0.005, 0.03, 0.01),
                         z(0, INT8, (5,)), codes(np.int16, 5).astype(np.int32), *_TO], {}),
        ]
    ),
    *(
        Case("MatMulIntegerToFloat", inputs, constants=tuple(range(1, 7)), label=label)
        for label, inputs in [
            ("", [codes(UINT8, 2, 3, 4), codes(INT8, 4, 5), s(0.02), s(0.01), z(120)]),
            ("bias", [codes(UINT8, 2, 3, 4), codes(INT8, 4, 5), s(0.02), s(0.01, 0.02, 0.005, 0.03, 0.01), z(120),
                      codes(INT8, 5), real(5)]),
        ]
    ),
    *(
        Case("DynamicQuantizeMatMul", inputs, constants=tuple(range(1, 5)), label=label)
        for label, inputs in [
            ("", [(2, 3, 4), codes(INT8, 4, 5), s(0.01)]),
            ("bias", [(2, 3, 4), codes(INT8, 4, 5), s(0.01, 0.02, 0.005, 0.03, 0.01), codes(INT8, 5), real(5)]),
            ("zero", [(2, 3, 4), codes(UINT8, 4, 5), s(0.01), z(128)]),
        ]
    ),
    *(
        Case("MatMulNBits", inputs, {"K": 40, "N": 5, "bits": bits, "block_size": 16}, constants=(1, 2, 3, 4, 5),
             label=label)
        for label, bits, inputs in [
            ("", 4, [(2, 3, 40), bytes_of(4, 5, 40, 16), np.abs(real(5, 3))]),
            ("flat", 4, [(3, 40), bytes_of(4, 5, 40, 16), np.abs(real(15))]),
            ("zeros", 4, [(2, 3, 40), bytes_of(4, 5, 40, 16), np.abs(real(5, 3)), codes(UINT8, 5, 2)]),
            ("real zeros", 4, [(2, 3, 40), bytes_of(4, 5, 40, 16), np.abs(real(5, 3)), real(5, 3)]),
            ("order", 4, [(2, 3, 40), bytes_of(4, 5, 40, 16), np.abs(real(5, 3)), None,
                          (np.arange(40) % 3).astype(np.int32)]),
            ("bias", 4, [(2, 3, 40), bytes_of(4, 5, 40, 16), np.abs(real(5, 3)), None, None, real(5)]),
            ("eight", 8, [(2, 3, 40), bytes_of(8, 5, 40, 16), np.abs(real(5, 3))]),
            ("eight zeros", 8, [(2, 3, 40), bytes_of(8, 5, 40, 16), np.abs(real(5, 3)), codes(UINT8, 5, 3)]),
        ]
    ),
    *(
        Case("GatherBlockQuantized", inputs, attributes, constants=(0, 2, 3), label=label)
        for label, inputs, attributes in [
            ("", [codes4(7, 40), ids(2, 3), np.abs(real(7, 3))], {"block_size": 16}),
            ("signed", [(codes4(7, 40).astype(int) - 8).astype(ml_dtypes.int4), ids(3), np.abs(real(7, 3))],
             {"block_size": 16}),
            ("packed", [codes(UINT8, 7, 16), ids(2, 3), np.abs(real(7, 2))], {"block_size": 16, "bits": 4}),
            ("packed zeros", [codes(UINT8, 7, 24), ids(2, 3), np.abs(real(7, 3)), codes(UINT8, 7, 2)],
             {"block_size": 16, "bits": 4}),
            ("bytes", [codes(UINT8, 7, 32), ids(2, 3), np.abs(real(7, 2))], {"block_size": 16, "bits": 8}),
            ("zeros", [codes4(7, 40), ids(2, 3), np.abs(real(7, 3)), codes4(7, 3)], {"block_size": 16}),
            ("axes", [codes4(7, 40, 3), ids(2), np.abs(real(7, 3, 3)), codes4(7, 3, 3)],
             {"block_size": 16, "gather_axis": 2, "quantize_axis": 1}),
        ]
    ),
    Case("QLinearAdd", [*_IMAGE, codes(UINT8, 5), s(0.03), z(3), *_TO]),
    Case("QLinearAdd", [codes(INT8, 3, 4), s(0.02), z(1, INT8), codes(INT8, 3, 4), s(0.03), z(3, INT8), s(0.06),
                        z(-9, INT8)]),
    Case("QLinearMul", [*_IMAGE, codes(UINT8, 4, 1, 1), s(0.03), z(3), *_TO]),
    Case("QLinearSigmoid", [codes(UINT8, 3, 4), s(0.02), z(120), s(1 / 256), z(0)], constants=(1, 2, 3, 4)),
    Case("QLinearLeakyRelu", [codes(INT8, 3, 4), s(0.02), z(5, INT8), s(0.02), z(0, INT8)], {"alpha": 0.2},
         constants=(1, 2, 3, 4)),
    Case("QLinearAveragePool", [*_IMAGE, *_TO], {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]},
         constants=(1, 2, 3, 4)),
    Case("QLinearGlobalAveragePool", [*_IMAGE, *_TO], {"channels_last": 0}, constants=(1, 2, 3, 4)),
    Case("QLinearGlobalAveragePool", [*_IMAGE, *_TO], {"channels_last": 1}, constants=(1, 2, 3, 4)),
    Case("QLinearSoftmax", [codes(UINT8, 3, 40), s(0.02), z(120), s(1 / 256), z(0)], {"axis": -1, "opset": 13},
         constants=(1, 2, 3, 4)),
    Case("QLinearSoftmax", [codes(UINT8, 2, 3, 4), s(0.02), z(120), s(1 / 256), z(0)], {"axis": 1, "opset": 11},
         constants=(1, 2, 3, 4)),
    Case("QLinearConcat", [*_TO, codes(UINT8, 2, 3), s(0.03), z(7), codes(UINT8, 2, 4), s(0.05), z(100)], {"axis": 1},
         constants=(0, 1, 3, 4, 6, 7)),
    Case("QLinearWhere", [np.array([[True, False, True]]), codes(UINT8, 2, 3), s(0.03), z(7), codes(UINT8, 1, 3),
                          s(0.05), z(100), *_TO], constants=(2, 3, 5, 6, 7, 8)),
    Case("QuantizeLinear", [(3, 4), s(0.05), z(9)]),
    Case("QuantizeLinear", [(3, 4), s(0.05, 0.1, 0.2), z(9, np.uint16, (3,))], {"axis": 0}),
    Case("DequantizeLinear", [codes(INT8, 3, 4), s(0.05), z(9, INT8)]),
    Case("DequantizeLinear", [codes(np.int16, 3, 4), s(0.05), z(9, np.int16)]),
]  # fmt: skip
