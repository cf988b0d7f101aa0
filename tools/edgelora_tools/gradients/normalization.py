"""Normalisation. C is X less its mean, s the inverse standard deviation, γ and β scale and bias.

In every member of the family Y = γ∘C∘s + β, and with G = dY∘γ, the gradient of C∘s,

    dX = s∘(G − mean(G) − C∘(s²∘mean(G∘C))),   dγ = Σ dY∘C∘s,   dβ = Σ dY

with the means over the normalised axes (Ioffe and Szegedy 2015; Ba et al. 2016). C∘s itself is never
formed for dX: s is small, and stays outside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import (
    annotate,
    axis_of,
    count_along,
    expand_like,
    indicator,
    rank,
    reshape_like,
    size_of,
    unbroadcast,
)


def _project(op: OpBuilder, g: ir.Value, c: ir.Value, s: ir.Value, axes: list[int]) -> ir.Value:
    """s∘(G − mean(G) − C∘(s²∘mean(G∘C)))."""
    along = op.Mul(op.Mul(s, s), op.ReduceMean(op.Mul(g, c), axes, keepdims=1))
    return op.Mul(s, op.Sub(op.Sub(g, op.ReduceMean(g, axes, keepdims=1)), op.Mul(c, along)))


def _standardize(op: OpBuilder, x: ir.Value, axes: list[int], epsilon: float) -> tuple[ir.Value, ir.Value]:
    """C = X − mean(X) and s = 1/√(mean(C²) + ε)."""
    c = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    return c, _inverse_root(op, op.ReduceMean(op.Mul(c, c), axes, keepdims=1), epsilon)


def _inverse_root(op: OpBuilder, square: ir.Value, epsilon: float) -> ir.Value:
    """1/√(square + ε)."""
    return op.Reciprocal(op.Sqrt(op.Add(square, epsilon)))


# --- over the last axes


@gradient_rule("LayerNormalization")
def layer_normalization(
    op: OpBuilder, node: ir.Node, dy: ir.Value | None, dmean: ir.Value | None = None, ds: ir.Value | None = None
) -> Thunks:
    """Y = γ∘C∘s + β, C = X − μ, over the axes from `axis` on.

    dX = s∘(G − mean(G) − C∘(s²∘mean(G∘C))), G = dY∘γ; plus dμ/n − C∘(ds∘s³/n), over n elements
    dγ = Σ dY∘C∘s
    dβ = Σ dY

    μ and s are outputs that the operator has computed; a node that leaves them out is given them.
    """
    x, gamma, *beta = operands(node)
    axis = axis_of(node.attributes.get_int("axis", -1), x)
    axes = list(range(axis, rank(x)))

    @cache
    def standardized() -> tuple[ir.Value, ir.Value]:
        mean, s = (_typed(op, v, x) for v in _statistics(node, x, axis))
        return op.Sub(x, mean), s

    def dx() -> ir.Value:
        terms = [] if dy is None else [_project(op, op.Mul(dy, gamma), *standardized(), axes)]
        if dmean is not None:
            terms.append(op.Div(_typed(op, dmean, x), count_along(op, x, axes)))
        if ds is not None:
            c, s = standardized()
            along = op.Mul(_typed(op, ds, x), op.Mul(op.Mul(s, s), s))
            terms.append(op.Mul(c, op.Neg(op.Div(along, count_along(op, x, axes)))))
        return expand_like(op, reduce(op.Add, terms), x)

    def dgamma() -> ir.Value:
        return unbroadcast(op, op.Mul(dy, op.Mul(*standardized())), gamma)

    return (dx,) if dy is None else (dx, dgamma, lambda: unbroadcast(op, dy, *beta))


def _typed(op: OpBuilder, v: ir.Value, x: ir.Value) -> ir.Value:
    """`v` in the type of `x`."""
    return op.Cast(v, to=x.dtype) if v.dtype != x.dtype else v


def _statistics(node: ir.Node, x: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    """The outputs Mean and InvStdDev of a LayerNormalization, added to the node where it has none."""
    assert x.shape is not None
    node.resize_outputs(3)
    y, *statistics = node.outputs
    for value, name in zip(statistics, ("mean", "inv_std_dev"), strict=True):
        value.name = value.name or f"{y.name}.{name}"
        value.shape = ir.Shape([*x.shape[:axis], *[1] * (rank(x) - axis)])
        value.type = ir.TensorType(ir.DataType(node.attributes.get_int("stash_type", 1)))
    mean, inv_std_dev = statistics
    return mean, inv_std_dev


@gradient_rule("RMSNormalization")
def rms_normalization(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = γ∘X∘s, s = 1/√(mean(X²) + ε) over the axes from `axis` on."""
    x, _ = operands(node)
    axes = list(range(axis_of(node.attributes.get_int("axis", -1), x), rank(x)))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return rms_gradients(op, node, dy, axes, lambda: inverse_rms(op, x, axes, epsilon))


def inverse_rms(op: OpBuilder, x: ir.Value, axes: list[int], epsilon: float) -> ir.Value:
    """1/√(mean(X²) + ε)."""
    return _inverse_root(op, op.ReduceMean(op.Mul(x, x), axes, keepdims=1), epsilon)


def rms_gradients(
    op: OpBuilder, node: ir.Node, dy: ir.Value, axes: list[int], inverse: Callable[[], ir.Value]
) -> Thunks:
    """Of Y = γ∘X∘s, where `inverse` makes s.

    dX = s∘(G − X∘(s²∘mean(G∘X))), G = dY∘γ
    dγ = Σ dY∘X∘s
    """
    x, gamma = operands(node)
    s = cache(inverse)

    def dx() -> ir.Value:
        g = op.Mul(dy, gamma)
        along = op.Mul(op.Mul(s(), s()), op.ReduceMean(op.Mul(g, x), axes, keepdims=1))
        return op.Mul(s(), op.Sub(g, op.Mul(x, along)))

    return dx, lambda: unbroadcast(op, op.Mul(dy, op.Mul(x, s())), gamma)


@gradient_rule("MeanVarianceNormalization")
def mean_variance_normalization(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = C/(σ + ε), C = X − mean(X), σ² = mean(C²), ε = 1e-9; s = 1/(σ + ε).

    dX = s∘(dY − mean(dY) − C∘(s/σ∘mean(dY∘C)))

    σ is taken as 1 where it is 0, as C is there.
    """
    (x,) = operands(node)
    axes = [axis_of(axis, x) for axis in node.attributes.get_ints("axes", (0, 2, 3))]

    def dx() -> ir.Value:
        c = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
        sigma = op.Sqrt(op.ReduceMean(op.Mul(c, c), axes, keepdims=1))
        sigma = op.Add(sigma, indicator(op, op.Equal(sigma, 0.0), sigma))
        s = op.Reciprocal(op.Add(sigma, 1e-9))
        along = op.Mul(op.Div(s, sigma), op.ReduceMean(op.Mul(dy, c), axes, keepdims=1))
        return op.Mul(s, op.Sub(op.Sub(dy, op.ReduceMean(dy, axes, keepdims=1)), op.Mul(c, along)))

    return (dx,)


@gradient_rule("LpNormalization")
def lp_normalization(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X/n, n = √ΣX² (p = 2) or Σ|X| (p = 1) along axis.

    p = 2: dX = (dY − Y∘Σ dY∘Y)/n
    p = 1: dX = (dY − sign(X)∘Σ dY∘Y)/n

    Y = 0 where n = 0, and n is taken as 1 there.
    """
    (x,), (y,) = operands(node), node.outputs
    axis, p = [node.attributes.get_int("axis", -1)], node.attributes.get_int("p", 2)

    def dx() -> ir.Value:
        n = op.ReduceL2(x, axis, keepdims=1) if p == 2 else op.ReduceL1(x, axis, keepdims=1)
        n = op.Add(n, indicator(op, op.Equal(n, 0.0), n))
        along = op.ReduceSum(op.Mul(dy, y), axis, keepdims=1)
        return op.Div(op.Sub(dy, op.Mul(y if p == 2 else op.Sign(x), along)), n)

    return (dx,)


# --- over positions: X is [N, C, …]


def _channels(op: OpBuilder, v: ir.Value, x: ir.Value) -> ir.Value:
    """`[C]` as `[C, 1, …]`, which broadcasts over the positions of `x`."""
    return op.Unsqueeze(v, list(range(1, rank(x) - 1))) if rank(x) > 2 else v


def _sum_to_channels(op: OpBuilder, dy: ir.Value, like: ir.Value) -> ir.Value:
    """Σ over all axes of `[N, C, …]` but the second."""
    return annotate(op.ReduceSum(dy, [0, *range(2, rank(dy))], keepdims=0), like)


@gradient_rule("BatchNormalization")
def batch_normalization(op: OpBuilder, node: ir.Node, dy: ir.Value, *drunning: ir.Value | None) -> Thunks:
    """Y = k∘(X − μ) + β, k = γ∘s, s = 1/√(v + ε), as in inference: μ and v are frozen statistics.

    dX = dY∘k
    dγ = Σ dY∘(X − μ)∘s
    dβ = Σ dY
    dμ = −k∘Σ dY
    dv = −½γ∘s³∘Σ dY∘(X − μ)

    In training mode μ and v are of X itself, over the batch and the positions, and Y is as of every other
    member of the family.
    """
    x, gamma, beta, mu, v = operands(node)
    if any(d is not None for d in drunning):
        raise refuse(node, "has its running statistics differentiated")
    if node.attributes.get_int("training_mode", 0):
        return _over_positions(op, node, dy, [0, *range(2, rank(x))])
    s = cache(lambda: _inverse_root(op, v, node.attributes.get_float("epsilon", 1e-5)))
    k = cache(lambda: op.Mul(gamma, s()))
    moment = cache(lambda: _sum_to_channels(op, op.Mul(dy, op.Sub(x, _channels(op, mu, x))), v))  # Σ dY∘(X − μ)
    total = cache(lambda: _sum_to_channels(op, dy, beta))  # Σ dY
    return (
        lambda: op.Mul(dy, _channels(op, k(), x)),
        lambda: op.Mul(moment(), s()),
        lambda: total(),
        lambda: op.Neg(op.Mul(k(), total())),
        lambda: op.Mul(op.Mul(op.Mul(k(), -0.5), op.Mul(s(), s())), moment()),
    )


@gradient_rule("InstanceNormalization")
def instance_normalization(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = γ∘C∘s + β, C = X − mean(X), over the positions of each channel.

    dX = s∘(G − mean(G) − C∘(s²∘mean(G∘C))), G = dY∘γ
    dγ = Σ dY∘C∘s
    dβ = Σ dY
    """
    return _over_positions(op, node, dy, list(range(2, rank(dy))))


def _over_positions(op: OpBuilder, node: ir.Node, dy: ir.Value, axes: list[int]) -> Thunks:
    """dX, dγ, dβ of a normalization of `[N, C, …]` over some axes, with a scale and a bias for each channel."""
    x, gamma, beta = operands(node)[:3]
    standardized = cache(lambda: _standardize(op, x, axes, node.attributes.get_float("epsilon", 1e-5)))
    return (
        lambda: _project(op, op.Mul(dy, _channels(op, gamma, x)), *standardized(), axes),
        lambda: _sum_to_channels(op, op.Mul(dy, op.Mul(*standardized())), gamma),
        lambda: _sum_to_channels(op, dy, beta),
    )


@gradient_rule("GroupNormalization")
def group_normalization(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = γ∘C∘s + β, C = X − mean(X), over each group of channels: over the last axis of X as [N, groups, …].

    dX = s∘(G − mean(G) − C∘(s²∘mean(G∘C))), G = dY∘γ
    dγ = Σ dY∘C∘s
    dβ = Σ dY
    """
    x, gamma, beta = operands(node)
    groups = node.attributes["num_groups"].as_int()

    def grouped(v: ir.Value) -> ir.Value:
        return op.Reshape(v, [0, groups, -1])

    standardized = cache(lambda: _standardize(op, grouped(x), [2], node.attributes.get_float("epsilon", 1e-5)))
    return (
        lambda: reshape_like(op, _project(op, grouped(op.Mul(dy, _channels(op, gamma, x))), *standardized(), [2]), x),
        lambda: _sum_to_channels(op, op.Mul(dy, reshape_like(op, op.Mul(*standardized()), x)), gamma),
        lambda: _sum_to_channels(op, dy, beta),
    )


# --- over neighbouring channels: X is [N, C, …]


@gradient_rule("LRN")
def local_response_normalization(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X∘D^(−β), D = b + α/n·W·X², W the sum over the n channels around each (Krizhevsky et al. 2012).

    dX = dY∘D^(−β) − (2αβ/n)·X∘(Wᵀ·(dY∘X∘D^(−β−1)))

    W sums one channel more after than before where n is even, Wᵀ before than after.
    """
    (x,) = operands(node)
    n, beta = node.attributes["size"].as_int(), node.attributes.get_float("beta", 0.75)
    alpha, b = node.attributes.get_float("alpha", 1e-4), node.attributes.get_float("bias", 1.0)

    def window(v: ir.Value, before: int, after: int) -> ir.Value:
        """n times the average over channels, as an image of one channel, [N, 1, C, …]."""
        flat = op.Reshape(v, op.Concat(size_of(op, x, 0), [1], size_of(op, x, 1), [-1], axis=0))
        mean = op.AveragePool(flat, kernel_shape=[n, 1], pads=[before, 0, after, 0], count_include_pad=1)
        return reshape_like(op, op.Mul(mean, float(n)), x)

    def dx() -> ir.Value:
        before, after = (n - 1) // 2, n // 2
        d = op.Add(op.Mul(window(op.Mul(x, x), before, after), alpha / n), b)
        direct = op.Mul(dy, op.Pow(d, -beta))
        across = window(op.Div(op.Mul(direct, x), d), after, before)
        return op.Sub(direct, op.Mul(op.Mul(x, 2.0 * alpha * beta / n), across))

    return (dx,)
