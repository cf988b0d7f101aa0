"""Gradients of adapters by torch autograd: the same A and B, added by hooks to the modules of the same names."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from edgelora.manifest import InsertionPoint
from edgelora_tools.sources.torch_export import Original

_CONVOLUTIONS = {
    torch.nn.Conv1d: torch.nn.functional.conv1d,
    torch.nn.Conv2d: torch.nn.functional.conv2d,
    torch.nn.Conv3d: torch.nn.functional.conv3d,
}


class NoDerivative(Exception):
    """Torch differentiates all but a few of its functions (floor_divide), and cannot pass these."""


@dataclass(frozen=True)
class Traced:
    """What torch made of an adapter: the outputs and the gradients by name."""

    outputs: Mapping[str, np.ndarray]
    gradients: Mapping[str, np.ndarray]


def in_double(original: Original) -> Original:
    """A copy that computes in float64."""
    dtypes = {k: torch.float64 if d.is_floating_point else d for k, d in original.dtypes.items()}
    return replace(original, module=copy.deepcopy(original.module).double(), dtypes=dtypes)


def reachable(original: Original, points: Sequence[InsertionPoint], feeds: Mapping[str, np.ndarray]) -> frozenset[str]:
    """The points whose modules are there, are of that kind, and are called rather than only read for their weight."""
    modules = dict(original.module.named_modules())
    called: set[str] = set()
    found = [(p.id, modules[p.id]) for p in points if p.id in modules and _fits(p, modules[p.id])]
    hooks = [module.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, module in found]
    try:
        with torch.no_grad():
            original(feeds)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(called)


def differentiate(
    original: Original,
    points: Sequence[InsertionPoint],
    adapter: Mapping[str, np.ndarray],
    feeds: Mapping[str, np.ndarray],
    cotangents: Mapping[str, np.ndarray],
) -> Traced:
    """d Σ <cotangent, output> / d(A, B) of `points`, all reachable; tensors have the graph's orientation.

    Raises:
        NoDerivative: of one of torch's functions on the way.
    """
    modules = dict(original.module.named_modules())
    dtype = next(original.module.parameters()).dtype
    leaves = {n: torch.from_numpy(np.array(x)).to(dtype).requires_grad_() for n, x in adapter.items()}
    hooks = [
        modules[p.id].register_forward_hook(_hook(p, leaves[p.input_a], leaves[p.input_b]), with_kwargs=True)
        for p in points
    ]
    try:
        with torch.enable_grad():
            made = original(feeds)
            terms = [torch.where(c != 0, made[n] * c, 0).sum().to(dtype) for n, c in _tensors(cotangents, dtype)]
            found = _differentiated(torch.stack(terms).sum(), list(leaves.values()))
    finally:
        for hook in hooks:
            hook.remove()
    gradients = {
        n: np.zeros(x.shape) if g is None else g.detach().numpy()
        for (n, x), g in zip(adapter.items(), found, strict=True)
    }
    return Traced({n: y.detach().numpy() for n, y in made.items()}, gradients)


def _differentiated(loss: torch.Tensor, leaves: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    try:
        return torch.autograd.grad(loss, leaves, allow_unused=True)
    except RuntimeError as error:
        if "is not implemented" in str(error):
            raise NoDerivative(str(error)) from error
        raise


def _tensors(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> list[tuple[str, torch.Tensor]]:
    return [(name, torch.from_numpy(x).to(dtype)) for name, x in arrays.items()]


def _fits(point: InsertionPoint, module: torch.nn.Module) -> bool:
    """Whether the module is what the point says: a convolution with that kernel, or a linear layer."""
    if isinstance(module, tuple(_CONVOLUTIONS)):
        return point.kernel == tuple(module.kernel_size)  # pyright: ignore[reportArgumentType]
    linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    return linear and not point.kernel


def _hook(point: InsertionPoint, a: torch.Tensor, b: torch.Tensor) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], y: torch.Tensor) -> torch.Tensor:
        x = args[0] if args else next(iter(kwargs.values()))
        return y + (_convolved(module, x, a, b) if point.kernel else x @ a @ b).to(y.dtype)

    return hook


def _convolved(module: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PEFT's delta of a convolution: A with the module's window, then B, 1×1, in the module's groups."""
    convolve = next(f for kind, f in _CONVOLUTIONS.items() if isinstance(module, kind))
    padding = module.padding
    if module.padding_mode != "zeros":
        x, padding = torch.nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    h = convolve(x, a, None, module.stride, padding, module.dilation)
    return convolve(h, b, groups=module.groups)
