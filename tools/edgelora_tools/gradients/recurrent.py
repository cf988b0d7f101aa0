"""LSTM, GRU and RNN: the steps go back in one Scan of few nodes, all else is a product over all steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.bodies import scan
from edgelora_tools.gradients.gates import Activation
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.sequences import Cotangents, Direction, put_together, take_apart
from edgelora_tools.gradients.shapes import filled, flatten_rows

Step = Callable[[OpBuilder, Sequence[ir.Value], Sequence[ir.Value]], Sequence[ir.Value]]
"""`step(op, states, factors) -> (*states before, *emitted)`"""


def _present(*values: ir.Value | None) -> list[ir.Value]:
    return [v for v in values if v is not None]


def _back(
    op: OpBuilder, d: Direction, step: Step, states: Sequence[ir.Value], factors: Sequence[ir.Value]
) -> list[ir.Value]:
    """Go through the steps from the last to the first; dY is added to the first state, dH, on the way."""

    def body(inner: OpBuilder, *values: ir.Value) -> Sequence[ir.Value]:
        carried, scanned = list(values[: len(states)]), values[len(states) :]
        if d.dy is not None:
            carried[0] = inner.Add(carried[0], scanned[-1])
        return step(inner, carried, scanned[: len(factors)])

    return scan(op, body, states, [*factors, *_present(d.dy)], backwards=not d.backwards)


def _add(op: OpBuilder, *terms: ir.Value | None) -> ir.Value:
    first, *others = _present(*terms)
    for term in others:
        first = op.Add(first, term)
    return first


def _gate(op: OpBuilder, f: Activation, a: ir.Value) -> tuple[ir.Value, ir.Value]:
    """f(A) and f′(A)."""
    y = f.value(op, a)
    return y, f.slope(op, a, y)


@gradient_rule("RNN")
def rnn(op: OpBuilder, node: ir.Node, *dys: ir.Value | None) -> Thunks:
    """H = f(A), A = X·Wᵀ + H₋₁·Rᵀ + b, step by step; Y is every H.

    dH = dY + dH of the step after
    dA = dH∘f′(A)
    dH₋₁ = dA·R
    """
    directions = take_apart(op, node, dys, ("Tanh",), (True,))

    def back(d: Direction) -> Cotangents:
        (f,) = d.activations
        if f.by_value:
            slope = f.slope(op, d.y, d.y)
        else:
            a = d.by_step(d.product(d.h_rows, d.r, d.product(d.x_rows, d.w, d.bias())))
            slope = f.slope(op, a, d.y)

        def step(inner: OpBuilder, states: Sequence[ir.Value], factors: Sequence[ir.Value]) -> Sequence[ir.Value]:
            (dh,), (slope, *held) = states, factors
            da = inner.Mul(dh, slope)
            return _add(inner, inner.MatMul(da, d.r), *(inner.Mul(dh, h) for h in held)), da

        dh, da = _back(op, d, step, [d.last_cotangent(0)], [d.within(slope), *_present(d.held)])
        return Cotangents(da, da, dh)

    return put_together(op, node, lambda: [(d, back(d)) for d in directions])


@gradient_rule("GRU")
def gru(op: OpBuilder, node: ir.Node, *dys: ir.Value | None) -> Thunks:
    """Z = f(A_z), Q = f(A_r), N = g(A_h), H = (1 − Z)∘N + Z∘H₋₁; A = X·Wᵀ + H₋₁·Rᵀ + b.

    In A_h, Q∘H₋₁ stands for H₋₁; with linear_before_reset, Q∘(H₋₁·Rᵀ + b) for H₋₁·Rᵀ + b.

    dH = dY + dH of the step after
    dA_z = dH∘(H₋₁ − N)∘f′(A_z)
    dA_h = dH∘(1 − Z)∘g′(A_h)
    dA_r = S∘H₋₁∘f′(A_r), S = dA_h·R_h
    dH₋₁ = dH∘Z + dA_z·R_z + dA_r·R_r + S∘Q

    With linear_before_reset, L = H₋₁·R_hᵀ + b has dL = dA_h∘Q, and all that R receives is linear in dH:
    dA_r = dA_h∘L∘f′(A_r), dH₋₁ = dH∘Z + [dA_z, dA_r, dL]·R.
    """
    directions = take_apart(op, node, dys, ("Sigmoid", "Tanh"), (True, True))
    if node.attributes.get_int("linear_before_reset", 0):
        return put_together(op, node, lambda: [(d, _gru_linear_first(op, d)) for d in directions])
    return put_together(op, node, lambda: [(d, _gru(op, d)) for d in directions])


def _gru(op: OpBuilder, d: Direction) -> Cotangents:
    f, g = d.activations
    r_z, r_r, r_h = op.Split(d.r, num_outputs=3, axis=0, _outputs=3)
    r_zr = op.Concat(r_z, r_r, axis=0)
    x_z, x_r, x_h = d.parts(d.by_step(d.product(d.x_rows, d.w, d.bias())), 3)
    h_z, h_r = d.parts(d.by_step(d.product(d.h_rows, r_zr)), 2)
    z, z_slope = _gate(op, f, _add(op, x_z, h_z))
    q, q_slope = _gate(op, f, _add(op, x_r, h_r))
    reset = op.Mul(q, d.h_before)
    n, n_slope = _gate(op, g, _add(op, x_h, d.by_step(d.product(flatten_rows(op, reset), r_h))))
    for_z = d.within(op.Mul(op.Sub(d.h_before, n), z_slope))
    for_h = d.within(op.Mul(op.Sub(1.0, z), n_slope))
    for_r = op.Mul(d.h_before, q_slope)

    def step(inner: OpBuilder, states: Sequence[ir.Value], factors: Sequence[ir.Value]) -> Sequence[ir.Value]:
        (dh,), (for_z, for_h, for_r, z, q) = states, factors
        da_z, da_h = inner.Mul(dh, for_z), inner.Mul(dh, for_h)
        s = inner.MatMul(da_h, r_h)
        da_zr = inner.Concat(da_z, inner.Mul(s, for_r), axis=1)
        before = _add(inner, inner.Mul(dh, z), inner.MatMul(da_zr, r_zr), inner.Mul(s, q))
        return before, inner.Concat(da_zr, da_h, axis=1)

    last = d.last_cotangent(0)
    dh, da = _back(op, d, step, [last], [for_z, for_h, for_r, d.kept(z), q])

    def dr() -> ir.Value:
        da_z, da_r, da_h = (flatten_rows(op, part) for part in d.parts(da, 3) if part is not None)
        from_h = op.Gemm(op.Concat(da_z, da_r, axis=1), d.h_rows, transA=1)
        return op.Concat(from_h, op.Gemm(da_h, flatten_rows(op, reset), transA=1), axis=0)

    return Cotangents(da, da, dh, dr=dr)


def _gru_linear_first(op: OpBuilder, d: Direction) -> Cotangents:
    f, g = d.activations
    x_z, x_r, x_h = d.parts(d.by_step(d.product(d.x_rows, d.w, d.wb)), 3)
    h_z, h_r, linear = d.parts(d.by_step(d.product(d.h_rows, d.r, d.rb)), 3)
    z, z_slope = _gate(op, f, _add(op, x_z, h_z))
    q, q_slope = _gate(op, f, _add(op, x_r, h_r))
    n, n_slope = _gate(op, g, _add(op, x_h, op.Mul(q, linear)))
    for_z = op.Mul(op.Sub(d.h_before, n), z_slope)
    for_h = d.within(op.Mul(op.Sub(1.0, z), n_slope))
    for_r = op.Mul(op.Mul(for_h, linear), q_slope)
    for_all = op.Concat(d.within(for_z), for_r, op.Mul(for_h, q), axis=-1)

    def step(inner: OpBuilder, states: Sequence[ir.Value], factors: Sequence[ir.Value]) -> Sequence[ir.Value]:
        (dh,), (for_all, z) = states, factors
        recurrent = inner.Mul(inner.Concat(dh, dh, dh, axis=1), for_all)
        return inner.Add(inner.Mul(dh, z), inner.MatMul(recurrent, d.r)), recurrent, dh

    last = d.last_cotangent(0)
    dh_first, recurrent, dh = _back(op, d, step, [last], [for_all, d.kept(z)])
    da_z, da_r, _ = d.parts(recurrent, 3)
    return Cotangents(op.Concat(da_z, da_r, op.Mul(dh, for_h), axis=-1), recurrent, dh_first)


@gradient_rule("LSTM")
def lstm(op: OpBuilder, node: ir.Node, *dys: ir.Value | None) -> Thunks:
    """C = F∘C₋₁ + I∘G, H = O∘h(C); I = f(A_i), O = f(A_o), F = f(A_f), G = g(A_c); A = X·Wᵀ + H₋₁·Rᵀ + b.

    Peepholes add P_i∘C₋₁, P_f∘C₋₁ and P_o∘C to A_i, A_f and A_o; with input_forget, F = 1 − I.

    dH = dY + dH of the step after
    dA_o = dH∘h(C)∘f′(A_o)
    dC = dH∘O∘h′(C) + dA_o∘P_o + dC of the step after
    dA_i = dC∘G∘f′(A_i), dA_f = dC∘C₋₁∘f′(A_f), dA_c = dC∘I∘g′(A_c)
    dH₋₁ = dA·R
    dC₋₁ = dC∘F + dA_i∘P_i + dA_f∘P_f
    dP_i = Σ dA_i∘C₋₁, dP_o = Σ dA_o∘C, dP_f = Σ dA_f∘C₋₁

    All of it is linear in dH and dC, so that the factors of all steps are computed at once. Of the forward
    pass only the recurrence of C is done again: Y is every H.
    """
    coupled = bool(node.attributes.get_int("input_forget", 0))
    directions = take_apart(op, node, dys, ("Sigmoid", "Tanh", "Tanh"), (True, True, False))
    return put_together(op, node, lambda: [(d, _lstm(op, d, coupled)) for d in directions])


def _lstm(op: OpBuilder, d: Direction, coupled: bool) -> Cotangents:
    f, g, h = d.activations
    a = d.by_step(d.product(d.h_rows, d.r, d.product(d.x_rows, d.w, d.bias())))
    a_i, a_o, a_f, a_c = (part for part in d.parts(a, 4) if part is not None)
    p_i, p_o, p_f = d.parts(d.p, 3)
    g_c, g_slope = _gate(op, g, a_c)

    def peep(op: OpBuilder, a: ir.Value, p: ir.Value | None, c: ir.Value) -> ir.Value:
        return a if p is None else op.Add(a, op.Mul(p, c))

    def forget(op: OpBuilder, i: ir.Value, c: ir.Value, a_f: ir.Value) -> ir.Value:
        return op.Sub(1.0, i) if coupled else f.value(op, peep(op, a_f, p_f, c))

    def advance(inner: OpBuilder, c: ir.Value, *elements: ir.Value) -> Sequence[ir.Value]:
        """C from C₋₁, where peepholes look at C₋₁."""
        a_i, a_f, g_c, *live = elements
        i = f.value(inner, peep(inner, a_i, p_i, c))
        after = inner.Add(inner.Mul(forget(inner, i, c, a_f), c), inner.Mul(i, g_c))
        for seen in live:
            after = inner.Add(c, inner.Mul(inner.Sub(after, c), seen))
        return after, c, after

    def advance_freely(inner: OpBuilder, c: ir.Value, kept: ir.Value, added: ir.Value) -> Sequence[ir.Value]:
        after = inner.Add(inner.Mul(c, kept), added)
        return after, c, after

    c_first = d.c_first or d.zeros
    if p_i is None:
        i = f.value(op, a_i)
        scanned = [d.kept(forget(op, i, i, a_f)), d.within(op.Mul(i, g_c))]
        _, before, c = scan(op, advance_freely, [c_first], scanned, d.backwards)
    else:
        _, before, c = scan(op, advance, [c_first], [a_i, a_f, g_c, *_present(d.live)], d.backwards)
        a_i, a_o, a_f = peep(op, a_i, p_i, before), peep(op, a_o, p_o, c), peep(op, a_f, p_f, before)
    i, i_slope = _gate(op, f, a_i)
    o, o_slope = _gate(op, f, a_o)
    h_c, h_slope = _gate(op, h, c)
    if coupled:
        kept = op.Sub(1.0, i)
        for_i = op.Mul(op.Sub(g_c, before), i_slope)
        for_f = filled(op, 0.0, op.Shape(i), i)
    else:
        kept, f_slope = _gate(op, f, a_f)
        for_i, for_f = op.Mul(g_c, i_slope), op.Mul(before, f_slope)
    for_o = op.Mul(h_c, o_slope)
    for_a = d.within(op.Concat(for_i, for_o, for_f, op.Mul(i, g_slope), axis=-1))
    through = op.Mul(o, h_slope)
    if p_i is not None:
        kept = _add(op, kept, op.Mul(for_i, p_i), op.Mul(for_f, p_f))
        through = op.Add(through, op.Mul(for_o, p_o))

    def step(inner: OpBuilder, states: Sequence[ir.Value], factors: Sequence[ir.Value]) -> Sequence[ir.Value]:
        (dh, dc), (for_a, through, kept, *held) = states, factors
        dc = inner.Add(dc, inner.Mul(dh, through))
        da = inner.Mul(inner.Concat(dc, dh, dc, dc, axis=1), for_a)
        dh_before = _add(inner, inner.MatMul(da, d.r), *(inner.Mul(dh, x) for x in held))
        return dh_before, inner.Mul(dc, kept), da

    last = [d.last_cotangent(0), d.last_cotangent(1)]
    dh, dc, da = _back(op, d, step, last, [for_a, d.within(through), d.kept(kept), *_present(d.held)])

    def dp() -> ir.Value:
        da_i, da_o, da_f, _ = d.parts(da, 4)
        seen = op.Concat(op.Mul(da_i, before), op.Mul(da_o, c), op.Mul(da_f, before), axis=-1)
        return op.ReduceSum(seen, [0, 1], keepdims=0)

    return Cotangents(da, da, dh, dc, dp=dp)
