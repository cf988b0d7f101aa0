"""Adapters of a task model: PEFT names their modules below the attribute that holds the base, as `bert.encoder…`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgelora.config import AdapterConfig
from edgelora.methods import Floats, Method, split_name


def onto_points(
    method: Method, config: AdapterConfig, tensors: Mapping[str, Floats], ids: Sequence[str]
) -> tuple[AdapterConfig, dict[str, Floats]]:
    """Settings and tensors with the bundle's ids, if all modules have them but for one and the same beginning.

    Otherwise as they are: what does not fit is named by `Adapter.validate`.
    """
    points = list(dict.fromkeys(p for p, suffix in map(split_name, tensors) if suffix in method.disk))
    renamed = _renamed(points, ids)
    if not renamed:
        return config, dict(tensors)

    def new_name(name: str) -> str:
        point, suffix = split_name(name)
        return f"{renamed[point]}.{suffix}" if suffix in method.disk else name

    return config.renamed(renamed), {new_name(name): tensor for name, tensor in tensors.items()}


def _renamed(points: Sequence[str], ids: Sequence[str]) -> dict[str, str]:
    """The id of every point, where one beginning has to go or is missing; empty where there is no such beginning."""
    known = set(ids)
    if not points or known.issuperset(points):
        return {}
    first = points[0]
    surplus = [first[: -len(one)] for one in ids if first.endswith(f".{one}")]
    missing = [one[: -len(first)] for one in ids if one.endswith(f".{first}")]
    for beginning in sorted(surplus, key=len):
        if all(p.startswith(beginning) and p.removeprefix(beginning) in known for p in points):
            return {p: p.removeprefix(beginning) for p in points}
    for beginning in sorted(missing, key=len):
        if all(beginning + p in known for p in points):
            return {p: beginning + p for p in points}
    return {}
