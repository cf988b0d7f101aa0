"""Attention and the rotation of queries and keys."""

import numpy as np

from tests.gradients.case import Case, mask

_ROW_MASK = "ONNX Runtime's Attention takes a mask of [queries, keys] only"
_HEADS = [(2, 4, 3, 2), (2, 4, 5, 2), (2, 4, 5, 2)]
_SHARED = [(2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2)]
_TABLE = np.random.default_rng(2).uniform(-3, 3, (6, 2))
_PAST = [(2, 2, 2, 2), (2, 2, 2, 2)]


def _closed(seen: np.ndarray) -> np.ndarray:
    """A mask of numbers: 0 where something is seen, else −∞."""
    return np.where(seen, 0.0, -np.inf)


CASES = [
    Case("Attention", _HEADS),
    Case("Attention", _HEADS, {"scale": 0.3}),
    Case("Attention", [*_HEADS[:2], (2, 4, 5, 3)], label="wide values"),
    Case("Attention", _HEADS, {"softcap": 0.8}),
    Case("Attention", _SHARED),
    Case("Attention", _SHARED, {"is_causal": 1}),
    Case("Attention", [*_SHARED, np.tri(3, dtype=bool)]),
    *(Case("Attention", [*_HEADS, shape]) for shape in [(3, 5), (1, 4, 3, 5), (2, 1, 3, 5), (2, 4, 3, 5)]),
    *(Case("Attention", [*_HEADS, shape], not_run=_ROW_MASK) for shape in [(5,), (2, 1, 1, 5)]),
    Case("Attention", [*_HEADS, mask(2, 1, 1, 5)], {"scale": 0.5}, not_run=_ROW_MASK),
    Case("Attention", [*_HEADS, np.array([1, 0, 1], bool).reshape(3, 1) & mask(3, 5)], label="forbidden row"),
    Case("Attention", [*_SHARED, (2, 1, 3, 3)], {"is_causal": 1, "softcap": 1.5}),
    Case("Attention", [*_SHARED, np.array([[0, 1, 1]], bool) & mask(3, 3)], {"is_causal": 1}, label="forbidden row"),
    Case("Attention", [(2, 3, 8), (2, 5, 8), (2, 5, 8)], {"q_num_heads": 4, "kv_num_heads": 4}),
    Case("Attention", [(2, 3, 8), (2, 5, 4), (2, 5, 6)], {"q_num_heads": 4, "kv_num_heads": 2}),
    *(
        Case("Attention", [*_SHARED, given, *_PAST], how, outputs=outputs, cotangents=some)
        for given, how, outputs, some in [
            (None, {}, 3, (0, 1, 2)),
            (None, {"is_causal": 1}, 3, (0,)),
            (None, {"is_causal": 1}, 4, (0, 2)),
            ((3, 5), {"softcap": 0.9}, 3, (0, 1)),
            (mask(3, 5), {}, 3, (0, 1, 2)),
        ]
    ),
    Case("Attention", [*_SHARED, None, *_PAST], outputs=3, cotangents=(1, 2), wrt=(1, 2, 4, 5)),
    Case("Attention", [*_SHARED, None, *_PAST], outputs=3, cotangents=(2,), wrt=(2, 5)),
    Case("Attention", _SHARED, outputs=3),
    Case(
        "Attention",
        [(2, 3, 8), (2, 3, 4), (2, 3, 6), None, (2, 2, 2, 2), (2, 2, 2, 3)],
        {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1},
        outputs=3,
    ),
    Case("Attention", _HEADS, {"softmax_precision": 11}),
    *(Case("Attention", _HEADS, {"qk_matmul_output_mode": mode}, outputs=4, cotangents=(0,)) for mode in range(4)),
    Case("Attention", [*_HEADS, _closed(mask(3, 5))], label="-inf"),
    Case("Attention", [*_HEADS, _closed(np.array([1, 0, 1], bool).reshape(3, 1) & mask(3, 5))], label="-inf row"),
    Case("Attention", [*_SHARED, _closed(np.array([[0, 1, 1]], bool) & mask(3, 3))], {"is_causal": 1}, label="-inf"),
    *(
        Case(
            "RotaryEmbedding",
            [shape, (6, pairs), (6, pairs), np.array([[0, 1, 2, 5], [3, 3, 1, 0]])],
            how,
            label="tables",
        )
        for shape, pairs, how in [
            ((2, 3, 4, 4), 2, {}),
            ((2, 3, 4, 4), 2, {"interleaved": 1}),
            ((2, 3, 4, 6), 2, {"rotary_embedding_dim": 4}),
            ((2, 4, 12), 2, {"num_heads": 3, "interleaved": 1}),
        ]
    ),
    Case("RotaryEmbedding", [(2, 3, 4, 4), (2, 4, 2), (2, 4, 2)], label="tables"),
    *(
        Case(
            "RotaryEmbedding",
            [(2, 3, 4, 4), np.cos(_TABLE), np.sin(_TABLE), np.array([[0, 1, 2, 5], [3, 3, 1, 0]])],
            {"interleaved": interleaved},
        )
        for interleaved in (0, 1)
    ),
    Case("RotaryEmbedding", [(2, 3, 4, 4), *(f(_TABLE[[[0, 1, 2, 5], [3, 3, 1, 0]]]) for f in (np.cos, np.sin))]),
    Case(
        "RotaryEmbedding",
        [(2, 3, 4, 6), np.cos(_TABLE), np.sin(_TABLE), np.array([[0, 1, 2, 5], [3, 3, 1, 0]])],
        {"rotary_embedding_dim": 4},
    ),
    Case(
        "RotaryEmbedding",
        [(2, 4, 12), np.cos(_TABLE), np.sin(_TABLE), np.array([[0, 1, 2, 5], [3, 3, 1, 0]])],
        {"num_heads": 3},
    ),
]
