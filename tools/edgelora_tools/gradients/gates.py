"""The activations of recurrent operators: their values and slopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import refuse
from edgelora_tools.gradients.shapes import filled, indicator

Value = Callable[[OpBuilder, ir.Value, float, float], ir.Value]
Slope = Callable[[OpBuilder, ir.Value, ir.Value, float, float], ir.Value]


@dataclass(frozen=True)
class _Kind:
    """Y = value(A, α, β) and dY/dA = slope(A, Y, α, β); `alpha` and `beta` are those that it takes, and their defaults.

    None is a number that must be given: ONNX Runtime takes 0 there, the specification says nothing or
    another number.
    """

    value: Value
    slope: Slope
    alpha: tuple[float | None, ...] = ()
    beta: tuple[float | None, ...] = ()


def _scaled_tanh_slope(op: OpBuilder, a: ir.Value, y: ir.Value, alpha: float, beta: float) -> ir.Value:
    t = op.Tanh(op.Mul(a, beta))
    return op.Mul(op.Sub(1.0, op.Mul(t, t)), alpha * beta)


def _step(op: OpBuilder, a: ir.Value, below: float) -> ir.Value:
    """1 where A ≥ 0, `below` elsewhere."""
    return op.Add(op.Mul(indicator(op, op.GreaterOrEqual(a, 0.0), a), 1.0 - below), below)


_KINDS: Mapping[str, _Kind] = {
    "relu": _Kind(lambda op, a, α, β: op.Relu(a), lambda op, a, y, α, β: indicator(op, op.Greater(y, 0.0), y)),
    "tanh": _Kind(lambda op, a, α, β: op.Tanh(a), lambda op, a, y, α, β: op.Sub(1.0, op.Mul(y, y))),
    "sigmoid": _Kind(lambda op, a, α, β: op.Sigmoid(a), lambda op, a, y, α, β: op.Mul(y, op.Sub(1.0, y))),
    "affine": _Kind(
        lambda op, a, α, β: op.Add(op.Mul(a, α), β),
        lambda op, a, y, α, β: filled(op, α, op.Shape(a), a),
        (None,),
        (None,),
    ),
    "leakyrelu": _Kind(
        lambda op, a, α, β: op.LeakyRelu(a, alpha=α), lambda op, a, y, α, β: _step(op, a, α), alpha=(0.01,)
    ),
    "thresholdedrelu": _Kind(
        lambda op, a, α, β: op.Mul(a, indicator(op, op.GreaterOrEqual(a, α), a)),
        lambda op, a, y, α, β: indicator(op, op.GreaterOrEqual(a, α), a),
        alpha=(None,),
    ),
    "scaledtanh": _Kind(lambda op, a, α, β: op.Mul(op.Tanh(op.Mul(a, β)), α), _scaled_tanh_slope, (None,), (None,)),
    "hardsigmoid": _Kind(
        lambda op, a, α, β: op.HardSigmoid(a, alpha=α, beta=β),
        lambda op, a, y, α, β: op.Mul(indicator(op, op.And(op.Greater(y, 0.0), op.Less(y, 1.0)), y), α),
        (0.2,),
        (0.5,),
    ),
    "elu": _Kind(
        lambda op, a, α, β: op.Elu(a, alpha=α),
        lambda op, a, y, α, β: op.Mul(op.Exp(op.Min(a, 0.0)), _step(op, a, α)),
        alpha=(1.0,),
    ),
    "softsign": _Kind(
        lambda op, a, α, β: op.Softsign(a),
        lambda op, a, y, α, β: (lambda room: op.Mul(room, room))(op.Sub(1.0, op.Abs(y))),
    ),
    "softplus": _Kind(lambda op, a, α, β: op.Softplus(a), lambda op, a, y, α, β: op.Sigmoid(a)),
}


@dataclass(frozen=True)
class Activation:
    """One activation f of a recurrent operator with its numbers; a clip bounds what enters it, 0 does not."""

    kind: _Kind
    alpha: float
    beta: float
    clip: float

    @property
    def by_value(self) -> bool:
        """Whether f′(A) follows from f(A) alone."""
        return not self.clip and self.kind in (_KINDS["relu"], _KINDS["tanh"], _KINDS["sigmoid"])

    def value(self, op: OpBuilder, a: ir.Value) -> ir.Value:
        """f(A)."""
        return self.kind.value(op, self._clipped(op, a), self.alpha, self.beta)

    def slope(self, op: OpBuilder, a: ir.Value, y: ir.Value) -> ir.Value:
        """f′(A), where Y = f(A); 0 where A was clipped."""
        slope = self.kind.slope(op, self._clipped(op, a), y, self.alpha, self.beta)
        if not self.clip:
            return slope
        return op.Mul(slope, indicator(op, op.Less(op.Abs(a), self.clip), a))

    def _clipped(self, op: OpBuilder, a: ir.Value) -> ir.Value:
        return op.Clip(a, -self.clip, self.clip) if self.clip else a


def activations_of(
    node: ir.Node, default: Sequence[str], directions: int, clipped: Sequence[bool]
) -> list[list[Activation]]:
    """The activations of each direction; alpha and beta are consumed by those that have one.

    `clipped` says of each whether the attribute `clip` bounds what enters it.

    Raises:
        ValueError: an activation that the specification does not know, or that lacks a number.
    """
    names = _listed(node, "activations") or [*default] * directions
    clip = node.attributes.get_float("clip", 0.0)
    alphas, betas = iter(_listed(node, "activation_alpha")), iter(_listed(node, "activation_beta"))
    found = []
    for position, name in enumerate(names[: len(default) * directions]):
        kind = _KINDS.get(name.lower())
        if kind is None:
            raise refuse(node, f"has the activation {name}")
        alpha = next(alphas, kind.alpha[0]) if kind.alpha else 0.0
        beta = next(betas, kind.beta[0]) if kind.beta else 0.0
        if alpha is None or beta is None:
            raise refuse(node, f"gives no activation_alpha or activation_beta for {name}")
        found.append(Activation(kind, alpha, beta, clip if clipped[position % len(default)] else 0.0))
    return [found[d * len(default) : (d + 1) * len(default)] for d in range(directions)]


def _listed(node: ir.Node, attribute: str) -> list:
    return list(node.attributes[attribute].value) if attribute in node.attributes else []
