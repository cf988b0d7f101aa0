"""A source of which some is settled: dimensions that take one size, inputs that take one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgelora.errors import ConversionError
from edgelora_tools.measure_shapes import dimension_names, name_dimensions
from edgelora_tools.sources.base import Source


def fixed(source: Source, settled: Mapping[str, float]) -> Source:
    """The source with `settled` in place: a size for a dynamic dimension, a number for all of an input.

    Such an input is none of the bundle's. What follows from it alone, as the branch that a sample rate
    chooses, is then settled too.

    Raises:
        ConversionError: there is no such dimension or input, or the number is none that it can have.
    """
    if not settled:
        return source
    reread = None if source.reread is None else lambda *asked: fixed(source.reading(*asked), settled)
    model = source.model.clone()
    name_dimensions(model)
    sizes, inputs = dimension_names(model), {str(x.name): x for x in model.graph.inputs}
    unknown = [name for name in settled if name not in sizes and name not in inputs]
    if unknown:
        raise ConversionError(
            f"the source has no dimension or input {', '.join(unknown)} to fix; its dynamic dimensions are "
            f"{', '.join(sizes) or 'none'}, its inputs {', '.join(inputs)}"
        )
    for name in (n for n in settled if n in sizes):
        if settled[name] != int(settled[name]) or settled[name] < 1:
            raise ConversionError(f"{name} is a dimension: its size is a whole number of at least 1")
    for x in inputs.values():
        x.shape = ir.Shape([_size(d if isinstance(d, int) else d.value, settled) for d in x.shape or ()])
    values = {name: _value(x, settled[name]) for name, x in inputs.items() if name in settled and name not in sizes}
    for name, array in values.items():
        x = inputs[name]
        model.graph.inputs.remove(x)
        x.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(x)
    otherwise = source.otherwise
    return replace(
        source,
        model=model,
        run=lambda feeds: source.run({**feeds, **values}),
        otherwise=None if otherwise is None else lambda feeds: otherwise({**feeds, **values}),
        facts={**source.facts, "fixed": {**source.facts.get("fixed", {}), **settled}},
        reread=reread,
    )


def _size(d: int | str | None, settled: Mapping[str, float]) -> int | str | None:
    return int(settled[d]) if isinstance(d, str) and d in settled else d


def _value(x: ir.Value, number: float) -> np.ndarray:
    dynamic = [str(d.value) for d in x.shape or () if not isinstance(d, int)]
    if dynamic:
        raise ConversionError(f"input {x.name!r} has no value while its size is open: fix {', '.join(dynamic)} too")
    assert x.dtype is not None and x.shape is not None
    array = np.full(x.shape.numpy(), number, x.dtype.numpy())
    if array.size and float(array.reshape(-1)[0]) != number and x.dtype.is_integer():
        raise ConversionError(f"input {x.name!r} holds {x.dtype.name.lower()}, which {number:g} is not")
    return array
