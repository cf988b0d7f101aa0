"""Shapes that rules share: what is known statically, un-broadcasting, reshaping back.

A dimension is an int, or a name ("batch") that stands for the same size wherever it appears. What is
known decides what is emitted: equal names need no reduction; where nothing is known the reduction's
axes are computed when the graph runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from weakref import WeakKeyDictionary

import onnx_ir as ir
from onnxscript import OpBuilder

Dim = int | str | None

REAL = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""The types of real numbers. Whatever else is differentiated holds codes, and its cotangent is of real numbers."""


def dims(x: ir.Value) -> tuple[Dim, ...]:
    """The dimensions of `x`: ints, names, or None where unknown.

    Raises:
        ValueError: the rank of `x` is not known.
    """
    if x.shape is None:
        raise ValueError(f"the rank of {x.name!r} is not known")
    return tuple(d if isinstance(d, int) else d.value for d in x.shape)


def rank(x: ir.Value) -> int:
    """The number of dimensions of `x`."""
    return len(dims(x))


def axis_of(axis: int, of: ir.Value) -> int:
    """`axis` counted from the front."""
    return axis + rank(of) if axis < 0 else axis


def known_equal(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are the same for every input."""
    return len(a) == len(b) and all(p == q and p is not None for p, q in zip(a, b, strict=True))


def annotate(x: ir.Value, like: ir.Value) -> ir.Value:
    """Give `x` the shape and, if that is of real numbers, the type of `like`; returns `x`."""
    if like.shape is not None:
        x.shape = ir.Shape(list(like.shape))
    if like.dtype in REAL:
        x.type = like.type
    return x


def shaped(x: ir.Value, sizes: Sequence[Dim], like: ir.Value) -> ir.Value:
    """Give `x` these dimensions and the type of `like`; returns `x`."""
    x.shape, x.type = ir.Shape(list(sizes)), like.type
    return x


def refine(x: ir.Value, like: ir.Value) -> ir.Value:
    """Fill in what is unknown of the shape of `x` from `like`, which has the same shape; returns `x`."""
    if like.shape is not None and x.shape is None:
        x.shape = ir.Shape(list(like.shape))
    elif like.shape is not None and x.shape is not None and len(x.shape) == len(like.shape):
        sizes = zip(dims(x), dims(like), strict=True)
        x.shape = ir.Shape([m if isinstance(m, int) or n is None else n for n, m in sizes])
    return x


def shape_of(op: OpBuilder, x: ir.Value) -> ir.Value:
    """The shape of `x` as an int64 tensor, without keeping `x` alive where that can be avoided.

    A named dimension that a graph input has is read off that input: a backward node that asked a large
    activation for its shape would hold its memory until then.
    """
    sizes = dims(x)
    if not sizes:
        return op.Constant(value=ir.tensor([], dtype=ir.DataType.INT64))
    if all(isinstance(d, int) for d in sizes):
        return op.Constant(value_ints=[d for d in sizes if isinstance(d, int)])
    if not named_by_inputs(op, x):
        return op.Shape(x)
    return op.Concat(*(size_of(op, x, axis) for axis in range(len(sizes))), axis=0)


def named_by_inputs(op: OpBuilder, x: ir.Value) -> bool:
    """Whether each dimension of `x` is a number, one that a graph input has, or a sum of such (`a+b`)."""
    sources = _dimension_sources(op)
    return all(isinstance(d, int) or d in sources or _is_sum(d, sources) for d in dims(x))


def _is_sum(d: Dim, of: Mapping[str, object]) -> bool:
    return isinstance(d, str) and "+" in d and all(name in of for name in d.split("+"))


def size_of(op: OpBuilder, x: ir.Value, axis: int) -> ir.Value:
    """The size of `x` along `axis` as an int64 tensor `[1]`; see `shape_of`."""
    d = dims(x)[axis]
    if isinstance(d, int):
        return op.Constant(value_ints=[d])
    sources = _dimension_sources(op)
    if d is not None and _is_sum(d, sources):
        first, *others = (op.Shape(v, start=a, end=a + 1) for v, a in (sources[name] for name in d.split("+")))
        return reduce(op.Add, others, first)
    source, axis = sources.get(d or "", (x, axis_of(axis, x)))
    return op.Shape(source, start=axis, end=axis + 1)


def count_along(op: OpBuilder, x: ir.Value, axes: Sequence[int]) -> ir.Value | float:
    """How many elements of `x` stand along `axes`: a number, or a scalar in the type of `x`."""
    sizes = [dims(x)[axis] for axis in axes]
    known = [d for d in sizes if isinstance(d, int)]
    if len(known) == len(sizes):
        return float(math.prod(known))
    return indicator(op, op.ReduceProd(op.Concat(*(size_of(op, x, axis) for axis in axes), axis=0), keepdims=0), x)


_Sources = dict[str, tuple[ir.Value, int]]
_known_sources: WeakKeyDictionary[ir.Graph, tuple[int, _Sources]] = WeakKeyDictionary()


def _dimension_sources(op: OpBuilder) -> _Sources:
    """For each named dimension the first graph input that has it; found anew when inputs have been added."""
    graph = op.builder.graph
    count, sources = _known_sources.get(graph, (-1, {}))
    if count != len(graph.inputs):
        sources = {}
        for value in graph.inputs:
            for axis, d in enumerate(dims(value)):
                if isinstance(d, str):
                    sources.setdefault(d, (value, axis))
        _known_sources[graph] = (len(graph.inputs), sources)
    return sources


def reshape_like(op: OpBuilder, y: ir.Value, like: ir.Value) -> ir.Value:
    """`y` in the shape of `like` (the same number of elements)."""
    sizes = dims(like)
    if y.shape is not None and known_equal(dims(y), sizes):
        return y
    unknown = [d for d in sizes if not isinstance(d, int)]
    if len(unknown) == 1 and 0 not in sizes:
        return annotate(op.Reshape(y, [d if isinstance(d, int) else -1 for d in sizes]), like)
    return annotate(op.Reshape(y, shape_of(op, like), allowzero=int(bool(unknown) or 0 in sizes)), like)


def expand_like(op: OpBuilder, y: ir.Value, like: ir.Value) -> ir.Value:
    """`y` broadcast to the shape of `like`."""
    if y.shape is not None and known_equal(dims(y), dims(like)):
        return y
    return annotate(op.Expand(y, shape_of(op, like)), like)


def indicator(op: OpBuilder, condition: ir.Value, like: ir.Value) -> ir.Value:
    """1 where `condition` holds, else 0, in the type of `like`. A product with it stands for Where, which is slow."""
    if like.dtype is None:
        raise ValueError(f"the type of {like.name!r} is not known")
    return op.Cast(condition, to=like.dtype)


def filled(op: OpBuilder, number: float, shape: ir.Value, like: ir.Value) -> ir.Value:
    """A tensor of one number, of the given shape, in the type of `like`."""
    if like.dtype is None:
        raise ValueError(f"the type of {like.name!r} is not known")
    return op.ConstantOfShape(shape, value=ir.tensor([number], dtype=like.dtype))


def zeros_like(op: OpBuilder, x: ir.Value) -> ir.Value:
    """Zeros of the shape of `x`, and of its type unless that is one of codes: then float32, as its cotangent is."""
    dtype = x.dtype if x.dtype is None or x.dtype in REAL else ir.DataType.FLOAT
    if dtype is None:
        raise ValueError(f"the type of {x.name!r} is not known")
    return annotate(op.ConstantOfShape(shape_of(op, x), value=ir.tensor([0.0], dtype=dtype)), x)


def flatten_rows(op: OpBuilder, x: ir.Value) -> ir.Value:
    """`[..., n]` as `[rows, n]`; a view, not a copy."""
    return x if rank(x) == 2 else op.Flatten(x, axis=-1)


def transpose_last(op: OpBuilder, x: ir.Value) -> ir.Value:
    """`[..., m, n]` as `[..., n, m]`."""
    order = list(range(rank(x)))
    order[-2:] = order[:-3:-1]
    return op.Transpose(x, perm=order)


def unbroadcast(op: OpBuilder, dy: ir.Value, x: ir.Value) -> ir.Value:
    """Sum `dy`, which has the shape that `x` was broadcast to, back to the shape of `x`.

    Broadcasting repeats x along an axis, so its gradient is the sum along it (ONNX, Broadcasting).
    """
    target = dims(x)
    if dy.shape is None:
        raise ValueError(f"the rank of the cotangent for {x.name!r} is not known")
    source = dims(dy)
    if known_equal(source, target):
        return dy
    lead = len(source) - len(target)
    pairs = list(zip(source[lead:], target, strict=True))
    if all(t == 1 or (t is not None and s == t) or _never_one(t) for s, t in pairs):
        axes = [*range(lead), *(lead + i for i, (s, t) in enumerate(pairs) if t == 1 and s != 1)]
        dx = op.ReduceSum(dy, axes, keepdims=1) if axes else dy
        if lead:
            dx = op.Squeeze(dx, list(range(lead)))
        return annotate(dx, x)
    shape = shape_of(op, x)
    padded = op.Concat([1] * lead, shape, axis=0) if lead else shape
    ones = op.NonZero(op.Equal(padded, [1]))
    axes_at_run = op.Reshape(ones, [-1])
    dx = op.ReduceSum(dy, axes_at_run, keepdims=1, noop_with_empty_axes=1)
    return annotate(op.Reshape(dx, shape), x)


def _never_one(d: Dim) -> bool:
    """Whether an axis of this size cannot have been repeated."""
    return isinstance(d, int) and d != 1


def positions_in(op: OpBuilder, x: ir.Value) -> ir.Value:
    """The flat position of every element of `x`, in the shape of `x` (int64).

    An operator that only moves elements, applied to them, tells where each of its outputs came from.
    """
    shape = shape_of(op, x)
    count = op.ReduceProd(shape, keepdims=0)
    flat = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    positions = op.Reshape(flat, shape)
    positions.shape = None if x.shape is None else ir.Shape(list(x.shape))
    return positions


def add_at_positions(op: OpBuilder, dy: ir.Value, positions: ir.Value, x: ir.Value) -> ir.Value:
    """Zeros in the shape of `x`, plus `dy` at the flat positions, which have the shape of `dy`."""
    zeros = op.Reshape(zeros_like(op, x), [-1])
    flat = op.ScatterElements(zeros, op.Reshape(positions, [-1]), op.Reshape(dy, [-1]), reduction="add")
    return reshape_like(op, flat, x)
