"""The names that PEFT gives to an adapter's tensors, and those that they have in a bundle.

A task model holds its base under a name (`bert.`) that stands before every path, and the base alone has none. So two
names of one module differ by a prefix, the same for all modules; anything else is another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgelora.config import AdapterConfig
from edgelora.errors import AdapterError
from edgelora.manifest import Manifest
from edgelora.methods import Floats, Method, no_graphs, split_name
from edgelora.methods.base import OTHER_BIAS

# What PEFT may keep beside a method's tensors, and the head that it gives a decoder, which has no bias.
_UNKNOWN_PARTS = {
    "lora_embedding_": "belongs to an adapter of an embedding, which has no insertion point",
    "lora_A.bias": "is the bias of a factor (lora_bias)",
    "lora_B.bias": "is the bias of a factor (lora_bias)",
    "trainable_tokens": "holds trained tokens (trainable_token_indices)",
}
_PEFT_HEADS, _HEAD_WITHOUT_BIAS = ("classifier", "score"), "score"
_TRIED, _SHOWN = 8, 20


def placed(
    method: Method, config: AdapterConfig, tensors: Mapping[str, Floats], manifest: Manifest
) -> tuple[AdapterConfig, dict[str, Floats]]:
    """PEFT's adapter with the names of this bundle's points and head.

    A decoder's head has no bias there: a bias of zeros is the same.

    Raises:
        AdapterError: the bundle has no graphs for the method; see `match_paths`.
    """
    if manifest.graph_set(method.graphs) is None:
        raise AdapterError(no_graphs(method))
    paths = match_paths(_modules(method, tensors), [point.id for point in manifest.points_in(method.graphs)])
    named = _with_names(method, tensors, paths)
    if any(old != new for old, new in paths.items()):
        config = config.renamed({old: paths[old] for old in named_modules(method, tensors)})
    head = manifest.head
    heads = [name for name in _PEFT_HEADS if f"{name}.weight" in tensors]
    if head is None or head.weight in tensors or len(heads) != 1:
        return config, named
    theirs = heads[0]
    named[head.weight] = named.pop(f"{theirs}.weight")
    bias = named.pop(f"{theirs}.bias", None)
    if bias is None and theirs == _HEAD_WITHOUT_BIAS:
        bias = np.zeros(named[head.weight].shape[:1], np.float32)
    if bias is not None:
        named[head.bias] = bias
    return replace(config, modules_to_save=(head.name,)), named


def named_inside(
    method: Method, config: AdapterConfig, tensors: Mapping[str, Floats], prefix: str, head: str | None
) -> tuple[AdapterConfig, dict[str, Floats]]:
    """An adapter with the names of a model that holds the base under `prefix` and has the head `head` (None: as here).

    Raises:
        AdapterError: they are no dotted path and no name.
    """
    words = [*(prefix.split(".") if prefix else ()), *(() if head is None else (head,))]
    if not all(word.isidentifier() or word.isdigit() for word in words):
        raise AdapterError(f"{'.'.join(words)!r} is not the path of a module, such as bert or model.encoder")
    paths = {module: f"{prefix}.{module}" if prefix else module for module in _modules(method, tensors)}
    own = {} if head is None else {n: f"{head}.{split_name(n)[1]}" for n in head_of(method, tensors)}
    named = {own.get(name, name): tensor for name, tensor in _with_names(method, tensors, paths).items()}
    if prefix:
        config = config.renamed({old: paths[old] for old in named_modules(method, tensors)})
    return (replace(config, modules_to_save=(head,)) if own and head is not None else config), named


def head_of(method: Method, tensors: Mapping[str, Floats]) -> dict[str, Floats]:
    """The tensors that are not the method's."""
    return {n: t for n, t in tensors.items() if n not in method.shared and split_name(n)[1] not in method.disk}


def convolved_head(tensors: Mapping[str, Floats], manifest: Manifest) -> dict[str, Floats]:
    """The tensors with the head of a map as torch has it, a convolution of one pixel `[outputs, channels, 1, 1]`."""
    head, own = manifest.head, dict(tensors)
    if head is not None and head.per == "pixel" and head.weight in own:
        own[head.weight] = own[head.weight][:, :, None, None]
    return own


def named_modules(method: Method, tensors: Mapping[str, Floats]) -> tuple[str, ...]:
    """The modules that the settings name: those that have more than a bias of the base's."""
    found = [m for m, suffix in map(split_name, tensors) if suffix in method.disk and suffix != OTHER_BIAS]
    return tuple(dict.fromkeys(found))


def _modules(method: Method, tensors: Mapping[str, Floats]) -> list[str]:
    """The modules that the method's tensors belong to, sorted."""
    return sorted({module for module, suffix in map(split_name, tensors) if suffix in method.disk})


def _with_names(method: Method, tensors: Mapping[str, Floats], paths: Mapping[str, str]) -> dict[str, Floats]:
    """The same tensors, those of each module under its other name."""
    named: dict[str, Floats] = {}
    for name, tensor in tensors.items():
        module, suffix = split_name(name)
        named[f"{paths[module]}.{suffix}" if suffix in method.disk else name] = tensor
    return named


def what_is(key: str) -> str:
    """Why a tensor of PEFT's is none of the method's and no head."""
    for part, what in _UNKNOWN_PARTS.items():
        if part in key:
            return what
    if key.startswith("base_model.model.") and key.endswith((".weight", ".bias")) and ".lora_" not in key:
        return "is a module of the base that was trained whole; a bundle's base is frozen"
    return "is not a tensor that this runtime knows"


def match_paths(modules: Sequence[str], points: Sequence[str]) -> dict[str, str]:
    """The point that each module is: of its own name, or of its name with one prefix taken away or put before it.

    Raises:
        AdapterError: a module that is no point, or several prefixes that would do: they are named.
    """
    known = set(points)
    if known.issuperset(modules):
        return {module: module for module in modules}
    changes = sorted({c for m in modules[:_TRIED] for p in points if (c := _change(m, p)) is not None})
    fitting = [change for change in changes if all(_changed(m, change) in known for m in modules)]
    if len(fitting) > 1:
        raise AdapterError(
            f"{modules[0]} may be any of {', '.join(_changed(modules[0], change) for change in fitting)}: give the "
            "adapter the names that `edgelora points` lists"
        )
    if not fitting:
        best = max(changes, key=lambda c: sum(_changed(m, c) in known for m in modules), default=("", ""))
        lost = [module for module in modules if _changed(module, best) not in known]
        shown = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
        raise AdapterError(
            f"no insertion point of this bundle is {shown} (`edgelora points` lists its points): convert the model "
            "again with these among --target-modules, or take an adapter of this base"
        )
    return {module: _changed(module, fitting[0]) for module in modules}


def _change(module: str, point: str) -> tuple[str, str] | None:
    """The prefix to take away and the one to put there, one of them empty; None if the names differ otherwise."""
    if module.endswith(f".{point}"):
        return module[: -len(point)], ""
    if point.endswith(f".{module}"):
        return "", point[: -len(module)]
    return None


def _changed(module: str, change: tuple[str, str]) -> str:
    """The module's name after the change, empty where it does not have the prefix."""
    taken, put = change
    return put + module.removeprefix(taken) if module.startswith(taken) else ""
