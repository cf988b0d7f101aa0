"""Shapes by measurement: run the graph at two sizes of every dynamic dimension and read what happens.

Static inference loses names at the first Expand or computed Reshape; rules that do not know two shapes
to be equal must reduce at run time. Two runs with prime sizes tell constants (equal in both), named
dimensions and their products apart, for any operator.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConversionError
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.runner import open_session, sample_inputs

_PRIMES = ((3, 5, 7, 11, 13, 17), (7, 11, 17, 19, 29, 31))  # no two grow by the same
_SCALES, _LONG = (1, 32), 256  # a sound may need some hundred samples, images of that size too much memory
_PLACEHOLDERS = {None, "", "?"}  # exporters write these for a size that they do not know
_LARGE, _APART, _UNKNOWN = 130, 68, "measured_"
_OF_SEQUENCES = {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap",
                 "SplitToSequence", "Optional"}  # fmt: skip

Sizes = dict[str, int]
Shapes = dict[str, list[int]]


def measure_shapes(model: ir.Model) -> list[Sizes]:
    """Give every value of the main graph its measured shape, in terms of the inputs' named dimensions.

    Returns the two sizes at which the model ran.

    Raises:
        ConversionError: the graph does not run at any of the tried sizes.
    """
    name_dimensions(model)
    measured = _measure_sharing(model, [_share_names_by_axis, _share_the_batch])
    sizes = [run for run, _ in measured]
    words = _vocabulary(sizes[:2], [name for name in _dynamic(model) if "+" in name])
    for node in model.graph:
        for value in node.outputs:
            shapes = [made.get(str(value.name)) for _, made in measured]
            ranks = {None if shape is None else len(shape) for shape in shapes[:2]}
            if None not in ranks and len(ranks) == 1:
                value.shape = ir.Shape([_confirmed(axis, shapes, sizes, words) for axis in range(ranks.pop() or 0)])
    return sizes[:2]


def name_dimensions(model: ir.Model) -> None:
    """Name the dynamic dimensions of the inputs that the source left without one, or gave a negative size."""
    for value in model.graph.inputs:
        if value.shape is None:
            raise ConversionError(f"input {value.name!r} has no shape, not even a rank: export the model with one")
        value.shape = ir.Shape(
            [
                f"{value.name}_dim_{axis}" if d in _PLACEHOLDERS or (isinstance(d, int) and d < 0) else d
                for axis, d in enumerate(dims(value))
            ]
        )


def dimension_names(model: ir.Model) -> list[str]:
    """The names of the dynamic dimensions of the inputs, in order of appearance; sums of them are none."""
    return [name for name in _dynamic(model) if "+" not in name]


def _dynamic(model: ir.Model) -> list[str]:
    """The dynamic dimensions of the inputs as they are written, in order of appearance."""
    found: dict[str, None] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        found.update((str(d.value), None) for d in value.shape if not isinstance(d, int))
    return list(found)


def batch_name(model: ir.Model) -> str | None:
    """The first dynamic dimension that comes first in an input of several: that of a batch's rows."""
    for value in model.graph.inputs:
        shape = dims(value)
        if len(shape) > 1 and isinstance(shape[0], str):
            return shape[0]
    return None


def _measure(model: ir.Model) -> list[tuple[Sizes, Shapes]]:
    """Two runs at prime sizes that must succeed, and those that do of one at the smallest sizes, one at large equal
    ones, and one at large ones that are apart: what is ⌈height/32⌉ in one picture is ⌈width/32⌉ in another.

    Small sizes at which something inside is empty tell nothing of it: the first scale with the least of that is taken.
    """
    names, batch = dimension_names(model), batch_name(model)
    if len(names) > len(_PRIMES[0]):
        raise ConversionError(f"the inputs have {len(names)} dynamic dimensions; {len(_PRIMES[0])} is the most")
    probed = _with_shape_outputs(model)
    failure, best = "nothing was tried", None
    for scale in (*_SCALES, _LONG) if len(set(names) - {batch}) == 1 else _SCALES:
        sizes = [
            {name: prime * (1 if name == batch else scale) for name, prime in zip(names, primes, strict=False)}
            for primes in _PRIMES
        ]
        with open_session(probed, optimize=False) as session:
            try:
                measured = [(run, _shapes_at(session, model, run, seed)) for seed, run in enumerate(sizes)]
            except Exception as error:  # ONNX Runtime raises a class of its own per status
                failure = str(error).splitlines()[0]
                continue
            smallest = dict.fromkeys(names, 1)
            large = {name: 2 if name == batch else _LARGE for name in names}
            apart = {name: 2 if name == batch else _LARGE + _APART * i for i, name in enumerate(names)}
            for run in (smallest, large, apart)[: 3 if len(names) > 2 else 2] if scale == 1 else ():
                with contextlib.suppress(Exception):
                    measured.append((run, _shapes_at(session, model, run, seed=len(measured))))
        empty = sum(_empty(model, made) for _, made in measured[:2])
        best = min(best or (empty, measured), (empty, measured), key=lambda found: found[0])
        if not empty or not names:
            break
    if best is None:
        remedy = f"; where {' or '.join(names)} takes one size only, fix it: --fix {names[-1]}=SIZE" if names else ""
        raise ConversionError(f"the model does not run at the sizes tried ({sizes}): {failure}{remedy}")
    return best[1]


def _empty(model: ir.Model, made: Shapes) -> int:
    """How many values are empty, or ought to be: ONNX Runtime pools an input that is smaller than its window."""
    count = sum(0 in shape for shape in made.values())
    for node in model.graph:
        x = node.inputs[0] if node.inputs else None
        window, shape = node.attributes.get_ints("kernel_shape", None), None if x is None else made.get(str(x.name))
        if "Pool" in node.op_type and window and shape and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET":
            pads = node.attributes.get_ints("pads", None) or [0] * (2 * len(window))
            sides = zip(shape[2:], pads, pads[len(window) :], window, strict=False)
            count += any(n + before + after < k for n, before, after, k in sides)
    return count


def _shapes_at(session: ort.InferenceSession, model: ir.Model, sizes: Sizes, seed: int) -> Shapes:
    """Shapes for other values each time: a size that depends on values is then no constant."""
    feeds = sample_inputs(model, sizes, np.random.default_rng(seed))
    known = {x.name for x in session.get_inputs()}
    names = [y.name for y in session.get_outputs()]
    results = session.run(names, {k: v for k, v in feeds.items() if k in known})
    return {n.removesuffix("::shape"): np.asarray(s).tolist() for n, s in zip(names, results, strict=True)}


def _with_shape_outputs(model: ir.Model) -> ir.Model:
    probed = model.clone()
    graph = probed.graph
    graph.outputs.clear()
    for node in list(graph):
        for value in node.outputs:
            if value.name and _is_tensor(value):
                shape = ir.node("Shape", [value])
                shape.outputs[0].name = f"{value.name}::shape"
                shape.outputs[0].dtype = ir.DataType.INT64
                shape.outputs[0].shape = ir.Shape([None])
                graph.append(shape)
                graph.outputs.append(shape.outputs[0])
    return probed


def _is_tensor(value: ir.Value) -> bool:
    """Whether the value has a shape to ask for: not if it is a sequence or optional, which exporters rarely say."""
    if isinstance(value.type, ir.SequenceType | ir.OptionalType):
        return False
    node = value.producer()
    if node is None:
        return True
    if node.op_type in _OF_SEQUENCES:
        return False
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    if bodies:  # a Loop's body has its condition before the others
        return _is_tensor(bodies[0].outputs[node.outputs.index(value) - len(node.outputs)])
    return node.op_type != "Identity" or node.inputs[0] is None or _is_tensor(node.inputs[0])


def _measure_sharing(model: ir.Model, shares: Sequence[Callable[[ir.Model], bool]]) -> list[tuple[Sizes, Shapes]]:
    """Measure; if the model does not run, with names that the `shares` one after another make the same."""
    try:
        return _measure(model)
    except ConversionError:
        for position, share in enumerate(shares):
            if share(model):
                return _measure_sharing(model, shares[position + 1 :])
        raise


def _share_names_by_axis(model: ir.Model) -> bool:
    """Inputs whose dimensions were named apart usually agree axis by axis; returns whether any changed."""
    changed, first = False, {}
    for value in model.graph.inputs:
        assert value.shape is not None
        dims = []
        for axis, d in enumerate(value.shape):
            if isinstance(d, int):
                dims.append(d)
                continue
            name = first.setdefault(axis, str(d.value))
            changed |= name != d.value
            dims.append(name)
        value.shape = ir.Shape(dims)
    return changed


def _share_the_batch(model: ir.Model) -> bool:
    """An input with one dynamic dimension, as a state has, has the batch's; returns whether any changed."""
    batch, changed = batch_name(model), False
    for value in model.graph.inputs:
        shape = dims(value)
        names = {d for d in shape if isinstance(d, str)}
        if batch is not None and len(names) == 1 and names != {batch}:
            value.shape = ir.Shape([batch if isinstance(d, str) else d for d in shape])
            changed = True
    return changed


def _vocabulary(sizes: list[Sizes], sums: Sequence[str]) -> dict[tuple[int, int], str]:
    """(size in the first run, size in the second) -> the name of the dimension, of a sum, or of a product of two."""
    first, second = sizes
    words: dict[tuple[int, int], str] = {(first[name], second[name]): name for name in first}
    words |= {(evaluate_dimension(name, first), evaluate_dimension(name, second)): name for name in sums}
    for a, b in itertools.combinations_with_replacement(first, 2):
        words.setdefault((first[a] * first[b], second[a] * second[b]), f"{a}*{b}")
    return words


def _confirmed(
    axis: int, shapes: list[list[int] | None], sizes: list[Sizes], words: dict[tuple[int, int], str]
) -> int | str:
    """A dimension from the first two runs, if it is right for the others too: a window may be longer than its input."""
    seen = [shape[axis] if shape is not None and len(shape) == len(shapes[0] or ()) else None for shape in shapes]
    a, b, *others = seen
    assert a is not None and b is not None
    found = _dimension(a, b, words)
    checked = zip(others, sizes[2:], strict=True)
    right = found is not None and all(size is None or evaluate_dimension(found, run) == size for size, run in checked)
    return found if found is not None and right else _UNKNOWN + "_".join(map(str, seen))


def _dimension(a: int, b: int, words: dict[tuple[int, int], str]) -> int | str | None:
    """A number; a name or a product of two; a multiple of one of these; a name plus a number; None if it is neither."""
    if a == b:
        return a
    if (a, b) in words:
        return words[a, b]
    for (first, second), word in words.items():
        if a % first == 0 and a * second == b * first:
            return f"{a // first}*{word}"
    for (first, second), word in words.items():
        if a - first == b - second and "*" not in word:
            return f"{word}{a - first:+d}"
    return None
