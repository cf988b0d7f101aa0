"""The case list: every operator that has an expansion, with every option of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.expansions.case import Case
from tests.expansions.quantized import QUANTIZED


def ints(*values: Any, dtype: Any = np.int64) -> np.ndarray:
    return np.array(values, dtype)


def mask(*rows: Sequence[int]) -> np.ndarray:
    return np.array(rows, np.int32)


def scalar(value: Any, dtype: Any = np.int32) -> np.ndarray:
    return np.array(value, dtype)


def angles(positions: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines `[positions, pairs]`."""
    table = np.outer(np.arange(positions), 0.7 ** np.arange(pairs)).astype(np.float32)
    return np.cos(table), np.sin(table)


PRODUCTS = [
    *(
        Case(op, shapes, attributes)
        for op in ("FusedMatMul", "TransposeMatMul")
        for shapes, attributes in [
            ([(3, 4), (4, 5)], {}),
            ([(2, 3, 4), (4, 5)], {"alpha": 0.25}),
            ([(2, 4, 3), (2, 4, 5)], {"transA": 1}),
            ([(2, 3, 4), (2, 5, 4)], {"transB": 1, "alpha": -2.0}),
            ([(2, 4, 3), (5, 4)], {"transA": 1, "transB": 1}),
            ([(4,), (4, 5)], {"transA": 1}),
            ([(2, 3, 4), (4,)], {"transB": 1}),
        ]
    ),
    Case("FusedMatMul", [(2, 3, 4), (5, 4)], {"transB": 1}, constants=(1,)),
    Case("FusedMatMul", [(3, 2, 4), (2, 4, 5)], {"transBatchA": 1}),
    Case("FusedMatMul", [(4, 2, 3, 5), (2, 3, 5, 6)], {"transBatchA": 1}),
    Case("FusedMatMul", [(4, 2, 3, 5), (2, 3, 4, 6)], {"transBatchA": 1, "transA": 1}),
    Case("FusedMatMul", [(2, 3, 4), (4, 2, 5)], {"transBatchB": 1}),
    Case("FusedMatMul", [(2, 3, 4), (5, 2, 4)], {"transBatchB": 1, "transB": 1}),
    Case("FusedGemm", [(3, 4), (4, 5), (5,)], {"activation": "Relu"}),
    Case("FusedGemm", [(3, 4), (5, 4), (5,)], {"activation": "Relu", "transB": 1}, constants=(1, 2)),
    Case("FusedGemm", [(4, 3), (4, 5)], {"activation": "Sigmoid", "transA": 1, "alpha": 0.5}),
    Case("FusedGemm", [(3, 4), (4, 5), (1, 5)], {"activation": "Tanh", "beta": 2.0}),
    Case("FusedGemm", [(3, 4), (4, 5), (3, 1)], {"activation": "LeakyRelu", "activation_alpha": 0.3}),
    Case("FusedGemm", [(3, 4), (4, 5), ()], {"activation": "Elu", "activation_alpha": 0.7}),
    Case("FusedGemm", [(3, 4), (4, 5)], {"activation": "HardSigmoid", "activation_alpha": 0.3, "activation_beta": 0.4}),
    Case("FusedGemm", [(3, 4), (4, 5)], {"activation": "ThresholdedRelu", "activation_alpha": 0.5}),
    Case("FusedGemm", [(3, 4), (4, 5)], {"activation": "Softplus"}),
    Case("FusedGemm", [(3, 4), (4, 5)], {"activation": "Softsign"}),
    *(
        Case("FusedConv", inputs, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]} | attributes)
        for inputs, attributes in [
            ([(2, 4, 6, 5), (3, 4, 3, 3), (3,)], {"activation": "Relu"}),
            ([(2, 4, 6, 5), (3, 4, 3, 3)], {"activation": "Tanh", "strides": [2, 1]}),
            ([(2, 4, 6, 5), (6, 2, 3, 3), (6,)], {"activation": "Sigmoid", "group": 2}),
            ([(2, 4, 6, 5), (3, 4, 3, 3), (3,)], {"activation": "LeakyRelu", "activation_params": [0.2]}),
            ([(2, 4, 6, 5), (3, 4, 3, 3), (3,)], {"activation": "Clip", "activation_params": [-0.5, 1.5]}),
            ([(2, 4, 6, 5), (3, 4, 3, 3), (3,)], {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]}),
            ([(2, 4, 6, 5), (3, 4, 3, 3), (3,), (2, 3, 6, 5)], {"activation": "Relu"}),
            ([(2, 4, 6, 5), (3, 4, 3, 3), None, (2, 3, 6, 5)], {"activation": "Relu"}),
            ([(2, 4, 6, 5), (3, 4, 3, 3), (3,), (2, 3, 6, 5)], {}),
        ]
    ),
]

ACTIVATIONS = [
    Case("Gelu", [(2, 3, 4)]),
    Case("BiasGelu", [(2, 3, 4), (4,)]),
    Case("BiasGelu", [(2, 3, 4), (4,)], constants=(1,)),
    Case("FastGelu", [(2, 3, 4)]),
    Case("FastGelu", [(2, 3, 4), (4,)]),
    Case("QuickGelu", [(2, 3, 4)]),
    Case("QuickGelu", [(2, 3, 4)], {"alpha": 1.0}),
    Case("ScaledSiLU", [(2, 3, 4)]),
    Case("ScaledSiLU", [(2, 3, 4)], {"alpha": 0.7}),
    Case("ScaledSiLU", [(2, 3, 4), scalar(1.3, np.float32)], {"alpha": 0.7}),
]

NORMALIZATIONS = [
    Case("SimplifiedLayerNormalization", [(2, 3, 8), (8,)], domain=""),
    Case("SimplifiedLayerNormalization", [(2, 3, 8), (8,)], {"axis": 2, "epsilon": 0.1}, domain="", outputs=(0, 1)),
    Case("SimplifiedLayerNormalization", [(2, 3, 8), (3, 8)], {"axis": 1}, domain=""),
    Case("SkipLayerNormalization", [(2, 3, 8), (2, 3, 8), (8,), (8,)]),
    Case("SkipLayerNormalization", [(2, 3, 8), (2, 3, 8), (8,)], {"epsilon": 0.1}),
    Case("SkipLayerNormalization", [(2, 3, 8), (2, 3, 8), (8,), (8,), (8,)], outputs=(0, 3)),
    Case("SkipLayerNormalization", [(2, 3, 8), (2, 3, 8), (8,), None, (8,)], outputs=(0, 3)),
    Case("SkipLayerNormalization", [(2, 3, 8), (3, 8), (8,), (8,)], outputs=(0, 1, 2, 3)),
    Case("SkipLayerNormalization", [(2, 3, 8), (1, 3, 8), (8,), (8,)], outputs=(0, 3)),
    Case("SkipLayerNormalization", [(3, 8), (3, 8), (8,), (8,)]),
    Case("SkipSimplifiedLayerNormalization", [(2, 3, 8), (2, 3, 8), (8,)]),
    Case("SkipSimplifiedLayerNormalization", [(2, 3, 8), (2, 3, 8), (8,), (8,)], {"epsilon": 0.1}, outputs=(0, 3)),
    Case("SkipSimplifiedLayerNormalization", [(2, 3, 8), (1, 3, 8), (8,)], outputs=(0, 3)),
    Case("SkipSimplifiedLayerNormalization", [(3, 8), (3, 8), (8,)]),
]

_IDS = ints([1, 2, 0, 5], [3, 4, 6, 2], dtype=np.int32)
_SEGMENTS = ints([0, 0, 1, 1], [0, 1, 0, 1], dtype=np.int32)
_TABLES = [(7, 8), (9, 8), (2, 8), (8,), (8,)]
_MASK = mask([1, 1, 1, 1], [1, 1, 1, 0])
_PLACES = ints([3, 1, 0, 8], [2, 2, 4, 5], dtype=np.int32)
EMBEDDINGS = [
    Case("EmbedLayerNormalization", inputs, attributes, constants=(2, 3, 4, 5, 6), outputs=outputs)
    for inputs, attributes, outputs in [
        ([_IDS, _SEGMENTS, *_TABLES, _MASK], {"epsilon": 1e-5}, (0, 1)),
        ([_IDS, _SEGMENTS, *_TABLES, _MASK], {}, (0, 1, 2)),
        ([_IDS, _SEGMENTS, *_TABLES], {}, (0, 1)),
        ([_IDS, None, (7, 8), (9, 8), None, (8,), (8,)], {}, (0, 1, 2)),
        ([_IDS, _SEGMENTS, *_TABLES, _MASK, _PLACES], {}, (0, 1)),
        ([_IDS, _SEGMENTS, *_TABLES, None, _PLACES[:1]], {}, (0, 1, 2)),
    ]
]

MOVEMENT = [
    Case("ExpandDims", [(2, 3), scalar(1)]),
    Case("ExpandDims", [(2, 3), scalar(-1)]),
    Case("ExpandDims", [(2, 3), scalar(0)]),
    Case("GatherND", [(3, 4, 2), ints([0, 1], [2, 3])]),
    Case("Trilu", [(2, 4, 5)]),
    Case("Trilu", [(4, 5), scalar(1, np.int64)], {"upper": 0}),
    Case("Trilu", [(4, 5), scalar(-1, np.int64)], {"upper": 1}),
    Case("Pad", [(2, 3), ints(0, 1, 2, 0)]),
    Case("Pad", [(2, 3), ints([0, 1, 2, 0]), scalar(1.5, np.float32)], {"mode": "constant"}),
    Case("Pad", [(2, 3), ints(0, 1, 1, 0), scalar([1.5], np.float32)]),
    Case("Pad", [(2, 3), ints(0, 1, 1, 2)], {"mode": "reflect"}),
    Case("Pad", [(2, 3), ints(0, 1, 3, 2)], {"mode": "edge"}),
    Case("Pad", [(3, 3), ints(-1, 1, 0, -1)]),
    Case("Range", [scalar(1.0, np.float32), scalar(4.2, np.float32)]),
    Case("Range", [scalar(1, np.int64), scalar(9, np.int64), scalar(3, np.int64)]),
    Case("Range", [ints(1), ints(9), ints(3)]),
]

_COS, _SIN = angles(12, 4)
_COS8, _SIN8 = angles(12, 8)
ROTARY = [
    Case("RotaryEmbedding", [(2, 3, 16), ints([0, 1, 2], [4, 2, 3]), _COS, _SIN], constants=(2, 3)),
    Case("RotaryEmbedding", [(2, 3, 16), ints(5), _COS, _SIN], {"interleaved": 1}, constants=(2, 3)),
    Case("RotaryEmbedding", [(2, 4, 3, 8), ints(0), _COS, _SIN], constants=(2, 3)),
    Case("RotaryEmbedding", [(2, 4, 3, 8), ints([0, 1, 2], [4, 2, 3]), _COS, _SIN], {"interleaved": 1}),
    Case("RotaryEmbedding", [(2, 3, 32), ints(1), _COS, _SIN], {"num_heads": 2, "rotary_embedding_dim": 8}),
    Case("RotaryEmbedding", [(2, 3, 32), ints(1), _COS, _SIN],
         {"num_heads": 2, "rotary_embedding_dim": 8, "interleaved": 1}),
    Case("RotaryEmbedding", [(2, 2, 3, 16), ints(1), _COS, _SIN], {"num_heads": 2, "rotary_embedding_dim": 8}),
]  # fmt: skip

_PACKED: list[Any] = [(2, 3, 8), (8, 48), (48,)]
_TWO = {"num_heads": 2}
ATTENTION = [
    *(
        Case("Attention", [*_PACKED, *more], _TWO | attributes, constants=(1, 2), outputs=outputs)
        for more, attributes, outputs in [
            ([], {}, (0,)),
            ([], {"unidirectional": 1}, (0,)),
            ([], {"scale": 0.3}, (0,)),
            ([ints(2, 3, dtype=np.int32)], {}, (0,)),
            ([ints(0, 3, dtype=np.int32)], {}, (0,)),
            ([ints(2, 3, 1, 0, dtype=np.int32)], {}, (0,)),
            ([ints(3, 2, 1, 0, dtype=np.int32)], {"unidirectional": 1, "mask_filter_value": -3.0}, (0,)),
            ([mask([1, 1, 0], [1, 0, 0])], {}, (0,)),
            ([mask([0, 1, 1], [0, 0, 0])], {"unidirectional": 1}, (0,)),
            ([mask([1, 1, 0], [1, 0, 0])], {"mask_filter_value": -1.5}, (0,)),
            ([np.random.default_rng(2).integers(0, 2, (2, 3, 3)).astype(np.int32)], {}, (0,)),
            ([None, None, (2, 2, 3, 3)], {}, (0,)),
            ([mask([1, 1, 0], [1, 0, 0]), None, (1, 1, 3, 3)], {}, (0,)),
            ([None, (2, 2, 2, 4, 8)], {"unidirectional": 1}, (0, 1)),
            ([mask([0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]), (2, 2, 2, 4, 8)], {}, (0, 1)),
            ([], {}, (0, 1)),
        ]
    ),
    Case("Attention", [(2, 3, 8), (8, 24)], _TWO, constants=(1,)),
    Case("Attention", [(2, 3, 8), (8, 40), (40,)], _TWO | {"qkv_hidden_sizes": [16, 16, 8]}, constants=(1,)),
    Case("Attention", _PACKED, _TWO),
]

_Q: list[Any] = [(2, 3, 16)]
_SEPARATE: list[Any] = [(2, 3, 16), (2, 5, 16), (2, 5, 16)]
MULTI_HEAD = [
    *(
        Case("MultiHeadAttention", [*inputs], _TWO | attributes, outputs=outputs)
        for inputs, attributes, outputs in [
            (_SEPARATE, {}, (0,)),
            (_SEPARATE, {"scale": 0.3}, (0,)),
            ([(2, 5, 16)] * 3, {"unidirectional": 1}, (0,)),
            ([*_SEPARATE, (48,)], {}, (0,)),
            ([(2, 3, 16), (2, 5, 16), (2, 5, 8)], {}, (0,)),
            ([(2, 3, 16), (2, 5, 16), (2, 5, 8), (40,)], {}, (0, 1, 2)),
            ([(2, 3, 16), (2, 2, 5, 8), (2, 2, 5, 8)], {}, (0,)),
            ([*_SEPARATE, None, ints(2, 5, dtype=np.int32)], {}, (0,)),
            ([*_SEPARATE, None, mask([1, 1, 1, 1, 0], [1, 1, 0, 0, 0])], {}, (0,)),
            ([*_SEPARATE, None, mask([0, 1, 1, 1, 0], [0] * 5)], {"mask_filter_value": -2.0}, (0,)),
            ([*_SEPARATE, (48,), np.random.default_rng(3).integers(0, 2, (2, 3, 5)).astype(np.int32)], {}, (0,)),
            ([*_SEPARATE, None, None, (2, 2, 3, 5)], {}, (0,)),
            ([*_SEPARATE, None, mask([1, 1, 1, 1, 0], [1, 1, 0, 0, 0]), (1, 1, 3, 5)], {}, (0,)),
            ([(2, 3, 16)] * 3 + [None] * 3 + [(2, 2, 4, 8)] * 2, {}, (0, 1, 2)),
            ([(2, 3, 16)] * 3 + [(48,), None, None] + [(2, 2, 4, 8)] * 2, {"unidirectional": 1}, (0, 1, 2)),
            ([(2, 3, 16)] * 3 + [None, mask([0] + [1] * 6, [1] * 7), (1, 2, 3, 7)] + [(2, 2, 4, 8)] * 2, {}, (0, 1, 2)),
        ]
    ),
    Case("MultiHeadAttention", [*_SEPARATE, (48,)], _TWO, constants=(3,)),
]

_GROUP = {"num_heads": 4, "kv_num_heads": 2}
_ROWS: list[Any] = [(2, 3, 64), (2, 3, 32), (2, 3, 32)]
_FULL, _SHORT, _THREE = ints(2, 2, dtype=np.int32), ints(1, 2, dtype=np.int32), scalar(3)
_NONE = [None, None]
_ROTATED = [*_ROWS, *_NONE, _FULL, _THREE, _COS8, _SIN8]
_STEP: list[Any] = [(2, 1, 64), (2, 1, 32), (2, 1, 32), (2, 2, 4, 16), (2, 2, 4, 16)]
GROUP_QUERY = [
    Case("GroupQueryAttention", inputs, _GROUP | attributes, constants=(7, 8), outputs=outputs)
    for inputs, attributes, outputs in [
        ([*_ROWS, *_NONE, _FULL, _THREE], {}, (0, 1, 2)),
        ([*_ROWS, *_NONE, _FULL, _THREE], {"scale": 0.1, "softcap": 0.4}, (0,)),
        ([*_ROWS, *_NONE, _SHORT, _THREE], {}, (0,)),
        ([*_ROWS, *_NONE, _FULL, _THREE], {"causal": 0}, (0,)),
        ([*_ROWS, *_NONE, _SHORT, _THREE], {"causal": 0}, (0,)),
        ([*_ROWS, *_NONE, _FULL, _THREE], {"local_window_size": 1}, (0,)),
        ([*_ROWS, *_NONE, _FULL, _THREE], {"local_window_size": 2}, (0,)),
        ([(2, 3, 128), *_NONE, *_NONE, _FULL, _THREE], {}, (0, 1, 2)),
        ([(2, 3, 128), *_NONE, *_NONE, _SHORT, _THREE, _COS8, _SIN8], {"do_rotary": 1}, (0,)),
        (_ROTATED, {"do_rotary": 1}, (0, 1, 2)),
        (_ROTATED, {"do_rotary": 1, "rotary_interleaved": 1}, (0, 1, 2)),
        ([*_ROWS, *_NONE, _FULL, _THREE, None, None, None, (1, 1, 3, 3)], {"softcap": 0.7}, (0,)),
        ([*_ROWS, *_NONE, _FULL, _THREE, None, None, None, (2, 4, 3, 3)], {}, (0,)),
        ([*_ROWS, *_NONE, _FULL, _THREE], {"smooth_softmax": 1}, (0,)),
        ([*_ROWS, *_NONE, _FULL, _THREE, None, None, None, None, (4,)], {}, (0,)),
        ([*_STEP, ints(4, 4, dtype=np.int32), scalar(5)], {}, (0, 1, 2)),
        ([*_STEP, ints(2, 4, dtype=np.int32), scalar(5)], {}, (0, 1, 2)),
        ([*_STEP, ints(2, 4, dtype=np.int32), scalar(5)], {"local_window_size": 2}, (0, 1, 2)),
        ([*_STEP, ints(2, 4, dtype=np.int32), scalar(5), _COS8, _SIN8], {"do_rotary": 1}, (0, 1, 2)),
        ([*_STEP, ints(2, 3, dtype=np.int32), scalar(4)], {}, (0, 1, 2)),
        ([(1, 2, 64), (1, 2, 32), (1, 2, 32), (1, 2, 4, 16), (1, 2, 4, 16), ints(5, dtype=np.int32), scalar(6)],
         {}, (0, 1, 2)),
        ([*_ROWS, (2, 2, 0, 16), (2, 2, 0, 16), _SHORT, _THREE, _COS8, _SIN8], {"do_rotary": 1}, (0,)),
    ]
]  # fmt: skip

CASES = [
    *PRODUCTS,
    *ACTIVATIONS,
    *NORMALIZATIONS,
    *EMBEDDINGS,
    *MOVEMENT,
    *ROTARY,
    *ATTENTION,
    *MULTI_HEAD,
    *GROUP_QUERY,
    *QUANTIZED,
]
