"""SGD and AdamW over named arrays, in place: torch's updates, to the last rounding that matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Named = Mapping[str, Floats]


class Optimizer(Protocol):
    """Updates named float32 arrays of any shape in place, and carries what it remembers as named arrays.

    `factors` multiply the learning rate of the arrays that they name.

    `state` returns the optimizer's own arrays, which the next step changes; `load_state` copies.
    """

    def step(self, parameters: Named, gradients: Named, learning_rate: float) -> None: ...

    def state(self) -> dict[str, NDArray[np.generic]]: ...

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None: ...


@dataclass
class SGD:
    """θ ← θ − η·v with v ← μ·v + g + λ·θ; with `nesterov`, θ ← θ − η·(g + λ·θ + μ·v) (torch.optim.SGD)."""

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    factors: Mapping[str, float] = field(default_factory=dict[str, float])
    _velocity: dict[str, Floats] = field(default_factory=dict[str, Floats], repr=False)
    _scratch: dict[str, tuple[Floats, Floats]] = field(default_factory=dict[str, "tuple[Floats, Floats]"], repr=False)

    def step(self, parameters: Named, gradients: Named, learning_rate: float) -> None:
        for name, theta in parameters.items():
            if name not in self._scratch:
                self._scratch[name] = (np.empty_like(theta), np.empty_like(theta if self.nesterov else theta[:0]))
            update, _ = self._scratch[name]
            np.multiply(theta, np.float32(self.weight_decay), out=update)
            update += gradients[name]
            if self.momentum:
                self._accumulate(name, update)
            update *= np.float32(learning_rate * self.factors.get(name, 1.0))
            theta -= update

    def _accumulate(self, name: str, update: Floats) -> None:
        """v ← μ·v + update, or v ← update at the first step; leaves in `update` what to descend along."""
        if name not in self._velocity:
            self._velocity[name] = update.copy()
        else:
            self._velocity[name] *= np.float32(self.momentum)
            self._velocity[name] += update
        v = self._velocity[name]
        if self.nesterov:
            update += np.multiply(v, np.float32(self.momentum), out=self._scratch[name][1])
        else:
            update[...] = v

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {f"velocity.{name}": v for name, v in self._velocity.items()}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        self._velocity = {k.removeprefix("velocity."): v.astype(np.float32) for k, v in state.items()}


@dataclass
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101; torch.optim.AdamW).

    θ ← θ·(1 − η·λ) − η·m̂/(√v̂ + ε), m ← β₁·m + (1−β₁)·g, v ← β₂·v + (1−β₂)·g², hats corrected for bias.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    factors: Mapping[str, float] = field(default_factory=dict[str, float])
    _first: dict[str, Floats] = field(default_factory=dict[str, Floats], repr=False)
    _second: dict[str, Floats] = field(default_factory=dict[str, Floats], repr=False)
    _scratch: dict[str, tuple[Floats, Floats]] = field(default_factory=dict[str, "tuple[Floats, Floats]"], repr=False)
    _steps: int = 0

    def step(self, parameters: Named, gradients: Named, learning_rate: float) -> None:
        self._steps += 1
        beta1, beta2 = self.betas
        correction1 = 1.0 - beta1**self._steps
        correction2 = 1.0 - beta2**self._steps
        for name, theta in parameters.items():
            g, rate = gradients[name], learning_rate * self.factors.get(name, 1.0)
            if name not in self._first:
                self._first[name], self._second[name] = np.zeros_like(theta), np.zeros_like(theta)
            if name not in self._scratch:
                self._scratch[name] = (np.empty_like(theta), np.empty_like(theta))
            m, v = self._first[name], self._second[name]
            update, denominator = self._scratch[name]
            if self.weight_decay:
                theta *= np.float32(1.0 - rate * self.weight_decay)
            np.subtract(g, m, out=update)
            update *= np.float32(1.0 - beta1)
            m += update
            v *= np.float32(beta2)
            np.multiply(g, g, out=update)
            update *= np.float32(1.0 - beta2)
            v += update
            np.sqrt(v, out=denominator)
            denominator /= np.float32(correction2**0.5)
            denominator += np.float32(self.eps)
            np.divide(m, denominator, out=update)
            update *= np.float32(rate / correction1)
            theta -= update

    def state(self) -> dict[str, NDArray[np.generic]]:
        state: dict[str, NDArray[np.generic]] = {"steps": np.asarray([self._steps], np.int64)}
        state |= {f"first.{name}": m for name, m in self._first.items()}
        return state | {f"second.{name}": v for name, v in self._second.items()}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        self._steps = int(state["steps"][0])
        self._first = {
            k.removeprefix("first."): v.astype(np.float32) for k, v in state.items() if k.startswith("first.")
        }
        self._second = {
            k.removeprefix("second."): v.astype(np.float32) for k, v in state.items() if k.startswith("second.")
        }


def clip_by_global_norm(gradients: Named, max_norm: float) -> float:
    """Scale the gradients so that their joint L2 norm is at most `max_norm`; returns the norm before.

    torch.nn.utils.clip_grad_norm_: the factor is max_norm/(norm + 1e-6), applied when below 1.
    """
    norm = float(np.sqrt(sum(float(np.dot(g.ravel(), g.ravel())) for g in gradients.values())))
    factor = max_norm / (norm + 1e-6)
    if factor < 1.0:
        for g in gradients.values():
            g *= np.float32(factor)
    return norm
