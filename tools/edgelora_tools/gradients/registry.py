"""The table of gradient rules: operator -> how a cotangent passes through it.

A rule is written once per operator and registered by name:

    @gradient_rule("Tanh")
    def tanh(op, node, dy):
        \"\"\"Y = tanh(X); dX = dY·(1 − Y²).\"\"\"
        (y,) = node.outputs
        return (lambda: op.Mul(dy, op.Sub(1.0, op.Mul(y, y))),)

It takes one cotangent per output (`None` where nothing flows in) and returns one entry per input: a
thunk that emits the input's gradient, or `None` where no gradient exists. Thunks keep rules lazy: what
no adapter needs is never emitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

Thunk = Callable[[], ir.Value]
Thunks = Sequence[Thunk | None]
GradientRule = Callable[..., Thunks]
"""`rule(op, node, *dys) -> one thunk or None per input`; inputs left off at the end have none."""


RULES: dict[tuple[str, str], GradientRule] = {}
NON_DIFFERENTIABLE: set[tuple[str, str]] = set()
QUANTIZERS: set[tuple[str, str]] = set()
"""Operators whose integer outputs stand for their real inputs: the gradient passes straight through them."""
WITH_BODIES: set[tuple[str, str]] = set()
"""Operators with bodies. Their rules get a keyword `wanted`, the values whose gradients will be asked for, and
return a thunk for each input and then for each value that the bodies take from outside."""


def gradient_rule(
    *op_types: str, domain: str = "", quantizes: bool = False, with_bodies: bool = False
) -> Callable[[GradientRule], GradientRule]:
    """Register the decorated rule for these operators of `domain`.

    `quantizes` puts them among the quantizers, `with_bodies` among the operators with bodies.
    """

    def register(rule: GradientRule) -> GradientRule:
        for op_type in op_types:
            key = (domain, op_type)
            if key in RULES or key in NON_DIFFERENTIABLE:
                raise ValueError(f"a second gradient rule for {domain or 'ai.onnx'}::{op_type}")
            RULES[key] = rule
            if quantizes:
                QUANTIZERS.add(key)
            if with_bodies:
                WITH_BODIES.add(key)
        return rule

    return register


def non_differentiable(*op_types: str, domain: str = "") -> None:
    """Declare operators whose outputs carry no gradient (integers, booleans, step functions)."""
    for op_type in op_types:
        key = (domain, op_type)
        if key in RULES:
            raise ValueError(f"{domain or 'ai.onnx'}::{op_type} already has a gradient rule")
        NON_DIFFERENTIABLE.add(key)


def key_of(node: ir.Node) -> tuple[str, str]:
    """The registry key of a node's operator."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
