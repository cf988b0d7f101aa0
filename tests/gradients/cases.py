"""The one list of gradient cases: every registered rule has at least one, and tests and benchmarks read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Sampler = tuple[int, ...] | np.ndarray


@dataclass(frozen=True)
class Case:
    """One node to differentiate.

    `inputs` are arrays, or shapes that are filled with standard normal numbers (float64); None is an
    absent optional input. `wrt` are the positions to differentiate (default: every input given as a
    shape). `positive` maps an input position to a lower bound (logarithms, roots), `within` to an
    interval. `outputs` is the number of outputs; `cotangents` those that receive one (default: all).
    """

    op: str
    inputs: Sequence[Sampler | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    wrt: tuple[int, ...] | None = None
    positive: Mapping[int, float] = field(default_factory=dict)
    within: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    outputs: int = 1
    cotangents: tuple[int, ...] | None = None
    label: str = ""

    @property
    def id(self) -> str:
        inputs = ",".join(map(_brief, self.inputs))
        text = ";".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}[{inputs}]{text}{self.label}"


def _brief(given: Sampler | None) -> str:
    """An input in a few letters: its shape, or its value where it is one number."""
    if given is None:
        return "-"
    if isinstance(given, np.ndarray):
        return str(given) if given.ndim == 0 else _brief(given.shape)
    return "x".join(map(str, given))


def axes(*values: int) -> np.ndarray:
    """Axes, sizes or the like: int64 `[n]`."""
    return np.array(values, dtype=np.int64)


def mask(*shape: int) -> np.ndarray:
    """A mask of truth values."""
    return np.random.default_rng(1).random(shape) < 0.5


LINEAR = [
    Case("MatMul", [(2, 3, 4), (4, 5)]),
    Case("MatMul", [(3, 4), (4, 5)]),
    Case("MatMul", [(2, 1, 3, 4), (5, 4, 6)]),
    Case("MatMul", [(4,), (4,)]),
    Case("MatMul", [(4,), (2, 4, 3)]),
    Case("MatMul", [(2, 3, 4), (4,)]),
    *(
        Case(
            "Gemm",
            [(4, 3) if ta else (3, 4), (5, 4) if tb else (4, 5), (5,)],
            {"transA": ta, "transB": tb, "alpha": 0.5, "beta": 2.0},
        )
        for ta in (0, 1)
        for tb in (0, 1)
    ),
    Case("Gemm", [(3, 4), (4, 5)]),
    Case("Gemm", [(3, 4), (4, 5), (3, 1)]),
    *(
        Case("Einsum", shapes, {"equation": equation})
        for equation, shapes in [
            ("ij,jk->ik", [(2, 3), (3, 4)]),
            ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
            ("bij, bjk, k -> bi", [(2, 3, 4), (2, 4, 5), (5,)]),
            ("ij->ji", [(2, 3)]),
            ("ijk->j", [(2, 3, 4)]),
            ("ij,kl->il", [(2, 3), (4, 5)]),
            ("i,i->", [(3,), (3,)]),
            ("bj,ja", [(2, 3), (3, 4)]),
        ]
    ),
]

ELEMENTWISE = [
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
    *(Case("Mod", [a, b], {"fmod": 1}, positive={1: 0.7}) for a, b in [((2, 3), (2, 3)), ((2, 3), (3,))]),
    *(Case(op, [(2, 3)]) for op in ("Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Sinh", "Cosh", "Atan", "Asinh")),
    Case("Tan", [(2, 3)], within={0: (-1.2, 1.2)}),
    *(Case(op, [(2, 3)], within={0: (-0.9, 0.9)}) for op in ("Asin", "Acos", "Atanh")),
    *(Case(op, [(2, 3)], positive={0: 0.5}) for op in ("Sqrt", "Reciprocal", "Log")),
    Case("Acosh", [(2, 3)], positive={0: 1.2}),
    *(Case(op, [()], positive={0: 0.5}) for op in ("Sqrt", "Exp")),
    *(
        Case("Where", [mask(*c), a, b])
        for c, a, b in [((2, 3), (2, 3), (2, 3)), ((3,), (2, 1), ()), ((2, 1, 1), (3, 1), (4,))]
    ),
    Case("Clip", [(3, 4), np.array(-0.5), np.array(0.7)]),
    Case("Clip", [(3, 4), np.array(-0.5)]),
    Case("Clip", [(3, 4), None, np.array(0.5)]),
    Case("Clip", [(3, 4)]),
    Case("Clip", [(3, 4), (), ()], within={1: (-1.0, -0.2), 2: (0.2, 1.0)}),
    Case("Clip", [(3, 4), None, ()]),
    Case("Identity", [(2, 3)]),
    Case("Dropout", [(2, 3)]),
    Case("Dropout", [(2, 3), np.array(0.3), np.array(False)]),
    Case("Dropout", [(2, 3), np.array(0.3)], outputs=2, cotangents=(0,)),
    Case("Cast", [(2, 3)], {"to": 11}),
    Case("CastLike", [(2, 3), np.zeros(1)]),
]

ACTIVATIONS = [
    *(
        Case(op, [(3, 4)])
        for op in ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Shrink", "Tanh", "Sigmoid")
    ),
    *(Case(op, [(3, 4)]) for op in ("HardSigmoid", "HardSwish", "Softplus", "Softsign", "Mish", "Gelu")),
    *(Case(op, [(3, 4)], {"alpha": alpha}) for op in ("LeakyRelu", "Elu") for alpha in (0.3, -0.3)),
    Case("Celu", [(3, 4)], {"alpha": 0.7}),
    Case("Selu", [(3, 4)], {"alpha": 1.1, "gamma": 0.9}),
    Case("Selu", [(3, 4)], {"alpha": -1.1, "gamma": 0.9}),
    Case("ThresholdedRelu", [(3, 4)], {"alpha": 0.2}),
    Case("ThresholdedRelu", [(3, 4)], {"alpha": -0.2}),
    Case("HardSigmoid", [(3, 4)], {"alpha": 0.5, "beta": 0.4}),
    Case("Shrink", [(3, 4)], {"lambd": 0.8, "bias": 0.3}),
    *(Case("PRelu", [(2, 3, 4), s]) for s in [(2, 3, 4), (3, 1), (1,), ()]),
    Case("Gelu", [(3, 4)], {"approximate": "tanh"}),
    Case("Gelu", [(2, 3, 4)], {"approximate": "none"}),
    *(Case(op, [(2, 3, 4)], {"axis": axis}) for op in ("Softmax", "LogSoftmax") for axis in (0, 1, -1)),
    *(Case(op, [(2, 3)]) for op in ("Softmax", "LogSoftmax")),
]

NORMALIZATION = [
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

_REDUCTIONS = {
    "ReduceSum": {},
    "ReduceMean": {},
    "ReduceMax": {},
    "ReduceMin": {},
    "ReduceProd": {},
    "ReduceL1": {},
    "ReduceL2": {},
    "ReduceSumSquare": {},
    "ReduceLogSum": {0: 0.3},
    "ReduceLogSumExp": {},
}
_REDUCED_AXES = [axes(1), axes(-1), axes(0, 2), axes(2, -3), None]

REDUCTIONS = [
    *(
        Case(
            op,
            [(2, 3, 4)] if which is None else [(2, 3, 4), which],
            {"keepdims": keep},
            positive=positive,
            label=str(which),
        )
        for op, positive in _REDUCTIONS.items()
        for which in _REDUCED_AXES
        for keep in (0, 1)
    ),
    *(
        Case(op, [(2, 3)], {"noop_with_empty_axes": 1}, positive=positive)
        for op, positive in _REDUCTIONS.items()
        if op not in ("ReduceL1", "ReduceL2", "ReduceProd")  # the reference evaluator reduces all axes there
    ),
    *(
        Case(op, [(2, 3), axes()], {"keepdims": keep}, positive={0: 0.3}, label="empty")
        for op in ("ReduceSum", "ReduceMean")
        for keep in (0, 1)
    ),
    Case(
        "ReduceProd", [np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]]), axes(1)], wrt=(0,), label="zeros"
    ),
    *(
        Case("CumSum", [(2, 3, 4), np.array(axis)], {"exclusive": exclusive, "reverse": reverse}, label=str(axis))
        for axis in (0, 1, -1)
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
]

MOVEMENT = [
    *(Case("Reshape", [(2, 3, 4), axes(*to)], label=str(to)) for to in [(6, 4), (-1,), (0, 12), (1, 2, 3, 2, 2)]),
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
        Case("Pad", [(3, 4), axes(*pads)], {"mode": mode} if mode else {}, label=str(pads))
        for mode in (None, "constant", "reflect", "edge", "wrap")
        for pads in [(1, 0, 2, 1), (0, 2, 0, 0)]
    ),
    Case("Pad", [(3, 4), axes(1, 2), (), axes(1)]),
    Case("Pad", [(3, 4), axes(1, 2, 0, 1), (), axes(-1, 0)]),
    Case("Pad", [(3, 4), axes(1, 2), None, axes(-1)], {"mode": "edge"}),
    *(
        Case("Expand", [shape, axes(*to)], label=str(to))
        for shape, to in [((3, 1), (2, 3, 4)), ((3, 4), (3, 1)), ((), (2, 2)), ((1, 3), (1, 1)), ((2, 1, 3), (2, 5, 3))]
    ),
    *(Case("Tile", [(2, 3), axes(*r)], label=str(r)) for r in [(1, 2), (3, 1), (2, 2), (1, 1)]),
    *(
        Case("Trilu", [(2, 3, 4), *([] if k is None else [np.array(k)])], {"upper": upper}, label=str(k))
        for upper in (0, 1)
        for k in (None, -1, 1)
    ),
    *(Case("DepthToSpace", [(2, 8, 2, 3)], {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Case("DepthToSpace", [(1, 4, 1, 2)], {"blocksize": 2}),
    Case("SpaceToDepth", [(2, 3, 4, 6)], {"blocksize": 2}),
]

INDEXING = [
    *(
        Case("Gather", [(3, 4, 5), np.array(index)], {"axis": axis}, label=str(index))
        for axis, index in [
            (0, 0),
            (1, 2),
            (1, -1),
            (-1, [1]),
            (0, [0, 2, 0]),
            (1, [3, -1, 0, 0]),
            (2, [[0, 4], [4, -2]]),
            (-2, [[1]]),
        ]
    ),
    Case("Gather", [(3, 4, 5), np.array([[1, 0], [2, 2]])]),
    Case("Gather", [(4,), np.array(2)]),
    *(
        Case("GatherElements", [(3, 4), np.array(index)], {"axis": axis}, label=str(index))
        for axis, index in [(0, [[0, 1, 2, 0], [0, 0, -1, 2]]), (1, [[3], [0], [-1]]), (1, [[3, 3], [0, 1], [1, 1]])]
    ),
    *(
        Case("GatherND", [(3, 4, 2), np.array(index)], {"batch_dims": batch}, label=str(index))
        for batch, index in [
            (0, [[0, 1], [2, 3], [0, 1]]),
            (0, [[[2]], [[2]]]),
            (1, [[1], [3], [0]]),
            (2, [[[1]] * 4] * 3),
        ]
    ),
    *(
        Case(
            "ScatterElements",
            [(3, 4), np.array(index), np.shape(index)],
            {"axis": axis, "reduction": how},
            label=str(index),
        )
        for how in ("none", "add")
        for axis, index in [(0, [[0, 1, 2, 0], [1, 0, -2, 2]]), (1, [[3], [0], [-1]])]
    ),
    Case("ScatterElements", [(3, 4), np.array([[1, 1, 1, 1]] * 2), (2, 4)], {"reduction": "add"}, label="repeated"),
    *(
        Case("ScatterND", [(3, 4, 2), np.array(index), shape], {"reduction": how}, label=str(index))
        for how in ("none", "add")
        for index, shape in [([[0, 1], [2, 3]], (2, 2)), ([[2], [0]], (2, 4, 2))]
    ),
    Case("ScatterND", [(3, 4), np.array([[1], [1]]), (2, 4)], {"reduction": "add"}, label="repeated"),
    *(
        Case("TopK", [(3, 5), axes(2)], {"axis": axis, "largest": largest}, outputs=2, cotangents=(0,))
        for axis in (0, -1)
        for largest in (0, 1)
    ),
]

ROW_MASK = "one mask for all queries"
_HEADS = [(2, 4, 3, 2), (2, 4, 5, 2), (2, 4, 5, 2)]
_SHARED = [(2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2)]
_TABLE = np.random.default_rng(2).uniform(-3, 3, (6, 2))

ATTENTION = [
    Case("Attention", _HEADS),
    Case("Attention", _HEADS, {"scale": 0.3}),
    Case("Attention", [*_HEADS[:2], (2, 4, 5, 3)], label="wide values"),
    Case("Attention", _HEADS, {"softcap": 0.8}),
    Case("Attention", _SHARED),
    Case("Attention", _SHARED, {"is_causal": 1}),
    Case("Attention", [*_SHARED, np.tri(3, dtype=bool)]),
    *(Case("Attention", [*_HEADS, shape]) for shape in [(3, 5), (1, 4, 3, 5), (2, 1, 3, 5), (2, 4, 3, 5)]),
    *(Case("Attention", [*_HEADS, shape], label=ROW_MASK) for shape in [(5,), (2, 1, 1, 5)]),
    Case("Attention", [*_HEADS, mask(2, 1, 1, 5)], {"scale": 0.5}, label=ROW_MASK),
    Case("Attention", [*_HEADS, np.array([1, 0, 1], bool).reshape(3, 1) & mask(3, 5)], label="forbidden row"),
    Case("Attention", [*_SHARED, (2, 1, 3, 3)], {"is_causal": 1, "softcap": 1.5}),
    Case("Attention", [*_SHARED, np.array([[0, 1, 1]], bool) & mask(3, 3)], {"is_causal": 1}, label="forbidden row"),
    Case("Attention", [(2, 3, 8), (2, 5, 8), (2, 5, 8)], {"q_num_heads": 4, "kv_num_heads": 4}),
    Case("Attention", [(2, 3, 8), (2, 5, 4), (2, 5, 6)], {"q_num_heads": 4, "kv_num_heads": 2}),
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

CONVOLUTION = [
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

CASES: list[Case] = [
    *LINEAR,
    *ELEMENTWISE,
    *ACTIVATIONS,
    *NORMALIZATION,
    *REDUCTIONS,
    *MOVEMENT,
    *INDEXING,
    *ATTENTION,
    *CONVOLUTION,
]
