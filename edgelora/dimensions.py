"""The sizes that a manifest's symbolic dimensions stand for."""

from __future__ import annotations

import re

from edgelora.errors import ConfigError


def evaluate_dimension(dimension: int | str, sizes: dict[str, int]) -> int:
    """The size of a dimension: a number, a name, their product (`4*a*b`) or sum (`a+b`, `a-2`)."""
    if isinstance(dimension, int):
        return dimension
    if dimension in sizes:
        return sizes[dimension]
    if (sum_of := re.fullmatch(r"(.+)([+-]\d+)", dimension)) and sum_of[1] in sizes:
        return sizes[sum_of[1]] + int(sum_of[2])
    if "+" in dimension:
        return sum(evaluate_dimension(part, sizes) for part in dimension.split("+"))
    size = 1
    for factor in dimension.split("*"):
        if factor not in sizes and not factor.isdecimal():
            raise ConfigError(f"LoRA dropout needs the size of dimension {dimension!r}, which no model input gives")
        size *= int(factor) if factor.isdecimal() else sizes[factor]
    return size
