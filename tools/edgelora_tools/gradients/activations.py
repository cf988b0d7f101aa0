"""Activation functions. m = [X > 0] is read off Y where Y has the sign of X: X need not be kept then."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import indicator, unbroadcast


def positive(op: OpBuilder, x: ir.Value) -> ir.Value:
    """[X > 0] as numbers."""
    return indicator(op, op.Greater(x, 0.0), x)


# --- rectifiers


@gradient_rule("Relu")
def relu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = max(X, 0); dX = dY∘[Y > 0]."""
    (y,) = node.outputs
    return (lambda: op.Mul(dy, indicator(op, op.Greater(y, 0.0), dy)),)


@gradient_rule("LeakyRelu")
def leaky_relu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X where X > 0, else α·X; dX = dY∘((1 − α)·m + α)."""
    (x,), (y,) = operands(node), node.outputs
    alpha = node.attributes.get_float("alpha", 0.01)
    sign = y if alpha >= 0 else x
    return (lambda: op.Mul(dy, op.Add(op.Mul(positive(op, sign), 1.0 - alpha), alpha)),)


@gradient_rule("PRelu")
def prelu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X where X > 0, else S∘X; dX = dY∘(m + (1 − m)∘S), dS = dY∘min(X, 0)."""
    x, s = operands(node)

    def dx() -> ir.Value:
        m = positive(op, x)
        return op.Mul(dy, op.Add(m, op.Mul(op.Sub(1.0, m), s)))

    return dx, lambda: unbroadcast(op, op.Mul(dy, op.Min(x, 0.0)), s)


@gradient_rule("ThresholdedRelu")
def thresholded_relu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X where X > α, else 0; dX = dY∘[X > α]."""
    (x,) = operands(node)
    alpha = node.attributes.get_float("alpha", 1.0)
    return (lambda: op.Mul(dy, indicator(op, op.Greater(x, alpha), dy)),)


@gradient_rule("Shrink")
def shrink(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X − bias where X > λ, X + bias where X < −λ, else 0; dX = dY∘[|X| > λ]."""
    (x,) = operands(node)
    lambd = node.attributes.get_float("lambd", 0.5)
    return (lambda: op.Mul(dy, indicator(op, op.Greater(op.Abs(x), lambd), dy)),)


@gradient_rule("Elu")
def elu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X where X > 0, else α(exp X − 1); dX = dY∘(m + (1 − m)∘(Y + α))."""
    return (lambda: op.Mul(dy, _exponential_slope(op, node, node.attributes.get_float("alpha", 1.0), 1.0)),)


@gradient_rule("Selu")
def selu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = γ·X where X > 0, else γα(exp X − 1); dX = dY∘(γ·m + (1 − m)∘(Y + γα))."""
    alpha = node.attributes.get_float("alpha", 1.6732632423543772)
    gamma = node.attributes.get_float("gamma", 1.0507009873554805)
    return (lambda: op.Mul(dy, _exponential_slope(op, node, gamma * alpha, gamma)),)


def _exponential_slope(op: OpBuilder, node: ir.Node, scale: float, gamma: float) -> ir.Value:
    """γ·m + (1 − m)∘(Y + s), the slope of γ·X where X > 0, else s·(exp X − 1)."""
    (x,), (y,) = operands(node), node.outputs
    m = positive(op, y if scale >= 0 and gamma > 0 else x)
    return op.Add(op.Mul(m, gamma), op.Mul(op.Sub(1.0, m), op.Add(y, scale)))


@gradient_rule("Celu")
def celu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = max(X, 0) + min(α(exp(X/α) − 1), 0); dX = dY∘(1 + min(Y, 0)/α)."""
    (y,) = node.outputs
    alpha = node.attributes.get_float("alpha", 1.0)
    return (lambda: op.Mul(dy, op.Add(op.Mul(op.Min(y, 0.0), 1.0 / alpha), 1.0)),)


# --- sigmoids


@gradient_rule("Tanh")
def tanh(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = tanh X; dX = dY∘(1 − Y²)."""
    (y,) = node.outputs
    return (lambda: op.Mul(dy, op.Sub(1.0, op.Mul(y, y))),)


@gradient_rule("Sigmoid")
def sigmoid(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = 1/(1 + exp(−X)); dX = dY∘Y∘(1 − Y)."""
    (y,) = node.outputs
    return (lambda: op.Mul(dy, op.Mul(y, op.Sub(1.0, y))),)


@gradient_rule("HardSigmoid")
def hard_sigmoid(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = min(max(α·X + β, 0), 1); dX = α·dY∘[0 < Y < 1]."""
    (y,) = node.outputs
    alpha = node.attributes.get_float("alpha", 0.2)

    def dx() -> ir.Value:
        inside = indicator(op, op.And(op.Greater(y, 0.0), op.Less(y, 1.0)), y)
        return op.Mul(op.Mul(dy, alpha), inside)

    return (dx,)


@gradient_rule("Softsign")
def softsign(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X/(1 + |X|); dX = dY/(1 + |X|)²."""
    (x,) = operands(node)

    def dx() -> ir.Value:
        d = op.Add(op.Abs(x), 1.0)
        return op.Div(dy, op.Mul(d, d))

    return (dx,)


@gradient_rule("Softplus")
def softplus(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = log(1 + exp X); dX = dY∘σ(X)."""
    (x,) = operands(node)
    return (lambda: op.Mul(dy, op.Sigmoid(x)),)


# --- gated: X times a sigmoid of X


@gradient_rule("HardSwish")
def hard_swish(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X∘H, H = min(max(X/6 + ½, 0), 1); dX = dY∘(H + X/6∘[0 < H < 1])."""
    (x,) = operands(node)

    def dx() -> ir.Value:
        h = op.HardSigmoid(x, alpha=1 / 6, beta=0.5)
        inside = indicator(op, op.And(op.Greater(h, 0.0), op.Less(h, 1.0)), x)
        return op.Mul(dy, op.Add(h, op.Mul(op.Mul(x, 1 / 6), inside)))

    return (dx,)


@gradient_rule("Swish")
def swish(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X∘S, S = σ(α·X); dX = dY∘(S + α·X∘S∘(1 − S))."""
    (x,) = operands(node)
    alpha = node.attributes.get_float("alpha", 1.0)

    def dx() -> ir.Value:
        ax = op.Mul(x, alpha)
        s = op.Sigmoid(ax)
        return op.Mul(dy, op.Mul(s, op.Add(op.Mul(ax, op.Sub(1.0, s)), 1.0)))

    return (dx,)


@gradient_rule("Mish")
def mish(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X∘T, T = tanh(softplus X); dX = dY∘(T + X∘σ(X)∘(1 − T²))."""
    (x,) = operands(node)

    def dx() -> ir.Value:
        t = op.Tanh(op.Softplus(x))
        gate = op.Mul(op.Mul(x, op.Sigmoid(x)), op.Sub(1.0, op.Mul(t, t)))
        return op.Mul(dy, op.Add(t, gate))

    return (dx,)


@gradient_rule("Gelu")
def gelu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X∘Φ(X), the normal distribution or its approximation by tanh.

    none: dX = dY∘(Φ + U∘exp(−U²)/√π), U = X/√2, Φ = (1 + erf U)/2
    tanh: dX = dY∘(S + S∘(1 − S)∘X∘(6ck·X² + 2c)), S = σ(2c·X + 2ck·X³) = (1 + tanh(c·X + ck·X³))/2,
          c = √(2/π), k = 0.044715
    """
    (x,) = operands(node)
    c, k = math.sqrt(2.0 / math.pi), 0.044715

    def exact() -> ir.Value:
        u = op.Mul(x, math.sqrt(0.5))
        phi = op.Mul(op.Add(op.Erf(u), 1.0), 0.5)
        bell = op.Exp(op.Sub(-0.5 * math.log(math.pi), op.Mul(u, u)))  # exp(−U²)/√π
        return op.Mul(dy, op.Add(phi, op.Mul(u, bell)))

    def tanh() -> ir.Value:
        q = op.Mul(x, x)
        s = op.Sigmoid(op.Mul(x, op.Add(op.Mul(q, 2 * c * k), 2 * c)))
        slope = op.Mul(x, op.Add(op.Mul(q, 6 * c * k), 2 * c))
        return op.Mul(dy, op.Mul(s, op.Add(op.Mul(op.Sub(1.0, s), slope), 1.0)))

    return (tanh if node.attributes.get_string("approximate", "none") == "tanh" else exact,)


# --- distributions along an axis


@gradient_rule("Softmax")
def softmax(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = softmax(X) along axis; dX = (dY − Σ dY∘Y)∘Y, the sum along the axis."""
    (y,) = node.outputs
    axis = [node.attributes.get_int("axis", -1)]
    return (lambda: op.Mul(op.Sub(dy, op.ReduceSum(op.Mul(dy, y), axis, keepdims=1)), y),)


@gradient_rule("LogSoftmax")
def log_softmax(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = log softmax(X) along axis; dX = dY − exp(Y)∘Σ dY, the sum along the axis."""
    (y,) = node.outputs
    axis = [node.attributes.get_int("axis", -1)]
    return (lambda: op.Sub(dy, op.Mul(op.Exp(y), op.ReduceSum(dy, axis, keepdims=1))),)
