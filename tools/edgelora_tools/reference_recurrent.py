"""Reference operators that repeat a step: LSTM, GRU, RNN, Loop, Scan; ONNX's own evaluator knows a part of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Activation = Callable[[np.ndarray], np.ndarray]

_ALPHA = {
    "affine": None,
    "leakyrelu": 0.01,
    "thresholdedrelu": None,
    "scaledtanh": None,
    "hardsigmoid": 0.2,
    "elu": 1.0,
}
_BETA = {"affine": None, "scaledtanh": None, "hardsigmoid": 0.5}
"""Those without a default must be given: ONNX Runtime takes 0, the specification says nothing or another number."""

_FUNCTIONS: Mapping[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "relu": lambda x, a, b: np.maximum(x, 0),
    "tanh": lambda x, a, b: np.tanh(x),
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "affine": lambda x, a, b: a * x + b,
    "leakyrelu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "thresholdedrelu": lambda x, a, b: np.where(x >= a, x, 0),
    "scaledtanh": lambda x, a, b: a * np.tanh(b * x),
    "hardsigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(x)),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: np.log1p(np.exp(x)),
}


def _activations(attributes: Mapping[str, Any], default: Sequence[str], directions: int) -> Iterator[Activation]:
    """The activations in order; alpha and beta are consumed by those that have one."""
    names = attributes.get("activations") or [*default] * directions
    alphas, betas = (iter(attributes.get(f"activation_{key}") or ()) for key in ("alpha", "beta"))
    for name in names[: len(default) * directions]:
        key = name.lower()
        alpha = next(alphas, _ALPHA[key]) if key in _ALPHA else 0.0
        beta = next(betas, _BETA[key]) if key in _BETA else 0.0
        yield lambda x, f=_FUNCTIONS[key], a=alpha, b=beta: f(x, a, b)


class _Recurrent(OpRun):
    """The steps of one direction after the other; a cell says what a step does to its states.

    A sequence stops at its length: its outputs beyond are zeros, its last states those at its last step,
    and zeros if it has none (the operators leave this open; ONNX Runtime does so).
    """

    default: Sequence[str] = ()

    def step(self, gates: np.ndarray, states: list[np.ndarray], d: int, given: Mapping[str, Any]) -> list[np.ndarray]:
        """The next states from X·Wᵀ of this step, `[batch, gates]`, and the states before it."""
        raise NotImplementedError

    def _run(self, x, w, r, b=None, lens=None, h=None, c=None, p=None, **attributes):
        if attributes.get("layout"):
            x = np.swapaxes(x, 0, 1)
            h, c = (None if s is None else np.swapaxes(s, 0, 1) for s in (h, c))
        (length, batch, _), (directions, _, hidden) = x.shape, r.shape
        lens = np.full(batch, length) if lens is None else lens
        b = np.zeros((directions, 2 * w.shape[1]), x.dtype) if b is None else b
        p = np.zeros((directions, 3 * hidden), x.dtype) if p is None else p
        limit = attributes.get("clip") or np.inf
        given = {**attributes, "r": r, "b": b, "p": p, "clip": lambda a: np.clip(a, -limit, limit)}
        given["functions"] = np.array(list(_activations(attributes, self.default, directions))).reshape(directions, -1)
        y = np.zeros((length, directions, batch, hidden), x.dtype)
        last = [np.zeros((directions, batch, hidden), x.dtype) for _ in range(2)]
        for d in range(directions):
            backwards = d == 1 or attributes.get("direction") == "reverse"
            states = [np.zeros((batch, hidden), x.dtype) if s is None else s[d] for s in (h, c)]
            for t in reversed(range(length)) if backwards else range(length):
                after = self.step(x[t] @ w[d].T, states, d, given)
                live = (t < lens)[:, None]
                states = [np.where(live, new, old) for new, old in zip(after, states, strict=True)]
                y[t, d] = np.where(live, states[0], 0)
            for whole, state in zip(last, states, strict=True):
                whole[d] = np.where((lens > 0)[:, None], state, 0)
        if attributes.get("layout"):
            y, last = y.transpose(2, 0, 1, 3), [np.swapaxes(s, 0, 1) for s in last]
        return (y, *last)[: len(self.onnx_node.output)]


class RNN(_Recurrent):
    """RNN with all its attributes; ONNX's own evaluator lacks directions, lengths and most activations."""

    default = ("Tanh",)

    def step(self, gates, states, d, given):
        (f,) = given["functions"][d]
        wb, rb = np.split(given["b"][d], 2)
        return [f(given["clip"](gates + wb + states[0] @ given["r"][d].T + rb)), states[1]]


class GRU(_Recurrent):
    """GRU with all its attributes; ONNX's own evaluator lacks directions, lengths and activations."""

    default = ("Sigmoid", "Tanh")

    def step(self, gates, states, d, given):
        (f, g), clip = given["functions"][d], given["clip"]
        h, _ = states
        xz, xr, xh = np.split(gates, 3, axis=1)
        rz, rr, rh = np.split(given["r"][d], 3)
        wbz, wbr, wbh, rbz, rbr, rbh = np.split(given["b"][d], 6)
        z = f(clip(xz + h @ rz.T + wbz + rbz))
        r = f(clip(xr + h @ rr.T + wbr + rbr))
        if given.get("linear_before_reset"):
            new = g(clip(xh + r * (h @ rh.T + rbh) + wbh))
        else:
            new = g(clip(xh + (r * h) @ rh.T + rbh + wbh))
        return [(1 - z) * new + z * h, states[1]]


class LSTM(_Recurrent):
    """LSTM with all its attributes; ONNX's own evaluator lacks directions, lengths and activations.

    With coupled gates, the forget gate is one minus the input gate. The clip bounds the four gates' inputs;
    the cell state enters its activation as it is, as in ONNX Runtime.
    """

    default = ("Sigmoid", "Tanh", "Tanh")

    def step(self, gates, states, d, given):
        (f, g, squash), clip = given["functions"][d], given["clip"]
        h, c = states
        wb, rb = np.split(given["b"][d], 2)
        i, o, forget, cell = np.split(gates + h @ given["r"][d].T + wb + rb, 4, axis=1)
        pi, po, pf = np.split(given["p"][d], 3)
        i = f(clip(i + pi * c))
        forget = 1 - i if given.get("input_forget") else f(clip(forget + pf * c))
        c = forget * c + i * g(clip(cell))
        return [f(clip(o + po * c)) * squash(c), c]


class Loop(OpRun):
    """Loop with count or condition left out, its emissions stacked; ONNX's own evaluator joins them end to end."""

    body: ReferenceEvaluator
    _run_body: Callable[..., list[np.ndarray]]

    def need_context(self) -> bool:
        return True

    def _run(self, count, going, *states, context=None, bindings=None, **_):
        names, made = self.body.input_names, self.body.output_names
        collected: list[list[np.ndarray]] = [[] for _ in made[1 + len(states) :]]
        step, going = 0, going is None or bool(going)
        while going and (count is None or step < count):
            feeds = {**(context or {}), **dict(zip(names, [np.array(step), np.array(True), *states], strict=True))}
            after, *results = self._run_body(feeds, bindings=bindings)
            states, going, step = results[: len(states)], bool(after), step + 1
            for store, y in zip(collected, results[len(states) :], strict=True):
                store.append(y)
        return (*states, *map(np.stack, collected))


class Scan(OpRun):
    """Scan along any axis in both directions; ONNX's own evaluator goes forward along the first axis."""

    body: ReferenceEvaluator
    _run_body: Callable[..., list[np.ndarray]]

    def need_context(self) -> bool:
        return True

    def _run(self, *args, context=None, bindings=None, **attributes):
        count = attributes["num_scan_inputs"]
        names, made = self.body.input_names, self.body.output_names
        states, scanned = list(args[: len(args) - count]), args[len(args) - count :]

        def option(key, n):
            return attributes.get(key) or [0] * n

        outputs = len(made) - len(states)
        sources = list(zip(scanned, *(option(f"scan_input_{k}", count) for k in ("axes", "directions")), strict=True))
        length = scanned[0].shape[sources[0][1]]
        collected: list[list[np.ndarray]] = [[] for _ in range(outputs)]
        for t in range(length):
            slices = [np.take(x, length - 1 - t if back else t, axis) for x, axis, back in sources]
            feeds = {**(context or {}), **dict(zip(names, [*states, *slices], strict=True))}
            results = self._run_body(feeds, bindings=bindings)
            states, emitted = list(results[: len(states)]), results[len(states) :]
            for store, y in zip(collected, emitted, strict=True):
                store.append(y)
        targets = zip(collected, *(option(f"scan_output_{k}", outputs) for k in ("axes", "directions")), strict=True)
        stacked = [np.stack(ys[::-1] if back else ys, axis) for ys, axis, back in targets]
        return (*states, *stacked)


RECURRENT: tuple[type[OpRun], ...] = (GRU, LSTM, Loop, RNN, Scan)
