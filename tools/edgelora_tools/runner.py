"""Run a graph on the desktop: stock ONNX Runtime on a temporary copy, and inputs that fit it."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from edgelora.byte_products import keep_exact
from edgelora.dimensions import evaluate_dimension

Feeds = dict[str, NDArray]

_PASS_THROUGH = {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Expand", "Slice", "Transpose"}
_NO_BOUND = 2
_AT_ONCE = 1 << 14
POSITIONS = "position_ids"  # the input that numbers the tokens of a text
_LENGTHS = re.compile(r"len(gth)?s?(_|$)", re.IGNORECASE)


@contextlib.contextmanager
def open_session(model: ir.Model, optimize: bool = True) -> Iterator[ort.InferenceSession]:
    """An ONNX Runtime session on `model`; the file behind it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="weights.bin")
        yield session_on(path, optimize)


@contextlib.contextmanager
def gradients_of(graph: ir.Model) -> Iterator[Callable[[Feeds], Feeds]]:
    """From feeds of a training graph to its gradients."""
    with open_session(graph) as session:
        names = [y.name for y in session.get_outputs() if y.name.startswith("grad.")]
        taken = {x.name for x in session.get_inputs()}

        def gradients(feeds: Feeds) -> Feeds:
            values = session.run(names, {name: x for name, x in feeds.items() if name in taken})
            return dict(zip(names, map(np.asarray, values), strict=True))

        yield gradients


def session_on(path: Path, optimize: bool = True) -> ort.InferenceSession:
    """An ONNX Runtime session on a file, CPU only, quiet."""
    options = quiet_options()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quiet_options() -> ort.SessionOptions:
    """Of a session that says nothing, and whose threads sleep while they wait."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; sizes that may not fit are tried on purpose
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    keep_exact(options)
    return options


def sample_inputs(model: ir.Model, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs of the model for these sizes of its named dimensions.

    Floats are standard normal, or fill the range of the codes that the graph makes of them at once; integers that
    index a table stay inside it; masks and lengths keep all of the first row and, as padding on the right would,
    ever less of the next ones; positions count from 0.
    """
    feeds = {}
    for value in model.graph.inputs:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        shape = [evaluate_dimension(d if isinstance(d, int) else str(d.value), dict(sizes)) for d in value.shape]
        dtype = value.dtype.numpy()
        if value.dtype == ir.DataType.BOOL or "mask" in value.name:
            feeds[value.name] = _mask(shape).astype(dtype)
        elif value.name == POSITIONS and value.dtype.is_integer() and shape:
            feeds[value.name] = np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
        elif _LENGTHS.search(value.name) and value.dtype.is_integer() and len(shape) <= 1:
            feeds[value.name] = _lengths(shape, _longest(value, model, sizes)).astype(dtype)
        elif value.dtype.is_floating_point():
            codes = _range_of_codes(value)
            draw = rng.standard_normal if codes is None else functools.partial(rng.uniform, *codes)
            feeds[value.name] = _drawn(draw, shape, dtype)
        else:
            feeds[value.name] = rng.integers(0, _index_bound(value), shape).astype(dtype)
    return feeds


def _drawn(draw: Callable[[int], Any], shape: list[int], dtype: np.dtype) -> NDArray:
    """Numbers in the order of the array, of which few are there in double precision at once."""
    drawn = np.empty(math.prod(shape), dtype)
    for start in range(0, len(drawn), _AT_ONCE):
        part = drawn[start : start + _AT_ONCE]
        part[:] = draw(len(part))
    return drawn.reshape(shape)


def _range_of_codes(value: ir.Value) -> tuple[float, float] | None:
    """What the codes can stand for if the input is quantized, whole and once; None if it is not."""
    users = [node for node, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != "QuantizeLinear" or len(users[0].inputs) < 3:
        return None
    scale, zero = (x.const_value if x is not None else None for x in users[0].inputs[1:3])
    if scale is None or zero is None or scale.size != 1 or not zero.dtype.is_integer() or zero.dtype.bitwidth != 8:
        return None
    s, z, info = float(scale.numpy().reshape(())), int(zero.numpy().reshape(())), np.iinfo(zero.dtype.numpy())
    return s * (int(info.min) - z), s * (int(info.max) - z)


def _mask(shape: list[int]) -> np.ndarray:
    mask = np.ones(shape)
    if len(shape) == 2:
        for row, kept in enumerate(mask):
            kept[max(1, len(kept) - row) :] = 0
    return mask


def _lengths(shape: list[int], longest: int) -> np.ndarray:
    """What a mask's rows would sum to."""
    return np.maximum(longest - np.arange(shape[0]) if shape else np.array(longest), 1)


def _longest(lengths: ir.Value, model: ir.Model, sizes: Mapping[str, int]) -> int:
    """The size along which the rows that `lengths` tells of are padded: the last of another input that is dynamic.

    Of several such inputs, the one whose name begins most like that of `lengths`; 1 where there is none.
    """
    others = [x for x in model.graph.inputs if x is not lengths and x.shape is not None and len(x.shape) > 1]
    if not others:
        return 1
    padded = max(others, key=lambda x: _shared(str(x.name), str(lengths.name)))
    assert padded.shape is not None
    dynamic = [sizes[str(d.value)] for d in list(padded.shape)[1:] if not isinstance(d, int)]
    fixed = padded.shape[1]
    return dynamic[-1] if dynamic else fixed if isinstance(fixed, int) else 1


def _shared(a: str, b: str) -> int:
    """How many letters two names begin with alike."""
    return next((n for n, (p, q) in enumerate(zip(a, b, strict=False)) if p != q), min(len(a), len(b)))


def _index_bound(value: ir.Value) -> int:
    """The number of rows of the smallest constant table that an integer input indexes."""
    bounds, front, seen = [], [value], set()
    while front:
        x = front.pop()
        if x in seen:
            continue
        seen.add(x)
        for node, position in x.uses():
            table = node.inputs[0]
            if node.op_type == "Gather" and position == 1 and table is not None and table.const_value is not None:
                axis = node.attributes.get_int("axis", 0)
                bounds.append(int(table.const_value.shape.numpy()[axis]))
            elif node.op_type in _PASS_THROUGH and position == 0:
                front.extend(node.outputs)
    return min(bounds, default=_NO_BOUND)
