"""What a graph's run holds in memory: the bytes in use at each node, as polynomials of the dynamic sizes.

ONNX Runtime's profile tells the bytes that its arena has given out at the end of every kernel, in the order in
which it runs them. Every shape is a product of the dynamic sizes, so what is in use at a node is a polynomial of
them: it is found by runs at several sizes, and of all nodes those are kept that are the largest anywhere.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConfigError
from edgelora.manifest import MEASURED_SIZE, GatheredTable, MemoryTable, MemoryTerm
from edgelora_tools.measure_shapes import Sizes
from edgelora_tools.passes.rows import MASK
from edgelora_tools.runner import quiet_options, sample_inputs

_MOST_RUNS, _MOST_CELLS = 16, 1 << 22
_GRID = (1, 4, 16, 64, 256)
_PRODUCTS = {"MatMul", "Gemm", "Conv", "MatMulNBits"}
_PASS_THROUGH = {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity"}


@dataclass(frozen=True)
class _Run:
    """One profiled run: bytes in use at the end of each kernel by the node's name, and those before."""

    sizes: Sizes
    in_use: dict[str, int]
    before: int


def memory_table(path: Path, model: ir.Model, sizes: Sequence[Sizes]) -> MemoryTable | None:
    """The table of the finished graph `model`, which lies at `path`; it runs at each of `sizes`.

    None if this ONNX Runtime's profile does not tell, or the graph does not run at enough other sizes.
    """
    names = [name for name in dict.fromkeys(_dimensions(model)) if name in sizes[0]]
    return _table(path, model, names, _points(names, sizes), _monomials(names))


def table_of_texts(path: Path, model: ir.Model, batch: str, length: str) -> MemoryTable | None:
    """The same for a language model: samples hold nothing together, so that only what is of one sample is squared.

    It runs at as few sizes as tell all.
    """
    points = [{batch: n, length: tokens} for n in (1, 2) for tokens in (16, 32, 48)]
    monomials = [one for one in _monomials([batch, length]) if one.count(batch) < 2]
    return _table(path, model, [batch, length], points, monomials)


def _table(
    path: Path, model: ir.Model, names: Sequence[str], points: Sequence[Sizes], monomials: Sequence[tuple[str, ...]]
) -> MemoryTable | None:
    runs = _profile(path, model, points, prepack=True)
    if not runs or len(runs) < min(len(points), len(monomials)):
        return None
    copies = any(node.op_type == "Conv" for node in model.graph)
    unpacked = _profile(path, model, points[:1], prepack=False) if copies else []
    loaded = unpacked[0].before if unpacked else 0
    read, read_always, gathered = _weights(model)
    return MemoryTable(
        _peaks(runs, monomials, names), loaded, max(runs[0].before - loaded, 0), read, read_always, gathered
    )


def _dimensions(model: ir.Model) -> list[str]:
    return [str(d.value) for v in model.graph.inputs if v.shape for d in v.shape if not isinstance(d, int)]


def _points(names: Sequence[str], sizes: Sequence[Sizes]) -> list[Sizes]:
    """Sizes to run at: those known to work, and combinations of them, their sum and twice their sum."""
    axes = [[sizes[0][n], sizes[1][n], sizes[0][n] + sizes[1][n]] for n in names]
    if len(names) == 1:
        axes[0].append(2 * axes[0][2])
    grid = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]
    grid = [point for point in grid if np.prod([float(v) for v in point.values()]) <= _MOST_CELLS] or grid[:1]
    chosen = (
        np.random.default_rng(0).permutation(len(grid))[:_MOST_RUNS] if len(grid) > _MOST_RUNS else range(len(grid))
    )
    return [grid[int(i)] for i in chosen]


def _profile(path: Path, model: ir.Model, points: Sequence[Sizes], prepack: bool) -> list[_Run]:
    """A run at each of the points; those at which it fails are left out."""
    options = quiet_options()
    options.enable_mem_pattern = False
    options.enable_profiling = True
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        done: list[Sizes] = []
        for point in points:
            try:
                session.run(None, _feeds(model, point))
            except Exception:  # ONNX Runtime raises a class of its own per status; sizes are tried on purpose
                continue
            done.append(point)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [e for e in events if e.get("cat") == "Node" and str(e["name"]).endswith("_kernel_time")]
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run"][-len(done) :]
    if not done or len(spans) != len(done) or any("mem_bytes_requested_in_use" not in e["args"] for e in kernels):
        return []
    inside = [[e for e in kernels if begun <= e["ts"] <= ended] for begun, ended in spans]
    return [_run(point, found) for point, found in zip(done, inside, strict=True) if found]


def _feeds(model: ir.Model, point: Sizes) -> dict[str, np.ndarray]:
    """Inputs at these sizes, without padding; sizes that are computed from others, as masks have them, follow."""
    sizes = dict.fromkeys(_dimensions(model), MEASURED_SIZE) | point
    for dimension in sizes:
        with contextlib.suppress(ConfigError):
            sizes[dimension] = evaluate_dimension(dimension, point)
    feeds = sample_inputs(model, sizes, np.random.default_rng(0))
    return {name: np.ones_like(x) if name == MASK else x for name, x in feeds.items()}


def _run(point: Sizes, kernels: Sequence[Mapping[str, Any]]) -> _Run:
    used = {str(e["name"]): int(e["args"]["mem_bytes_requested_in_use"]) for e in kernels}
    first = kernels[0]["args"]
    before = int(first["mem_bytes_requested_in_use"]) - int(first["mem_requested_in_use_delta"])
    return _Run(point, {name: u - before for name, u in used.items()}, before)


def _monomials(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Products of up to three sizes, none to the third; `()` is the constant."""
    powers = itertools.chain.from_iterable(itertools.combinations_with_replacement(names, d) for d in range(3))
    cubic = [(a, b, b) for a, b in itertools.permutations(names, 2)]  # attention: batch, length, length
    return [*powers, *cubic]


def _peaks(
    runs: Sequence[_Run], monomials: Sequence[tuple[str, ...]], names: Sequence[str]
) -> tuple[tuple[MemoryTerm, ...], ...]:
    """The polynomials of the nodes that hold the most at some sizes."""
    nodes = [name for name in runs[0].in_use if all(name in run.in_use for run in runs)]
    held = np.array([[run.in_use[name] for name in nodes] for run in runs], np.float64)
    terms = np.array([_terms(monomials, run.sizes) for run in runs])
    scale = 1 / np.maximum(held.max(axis=1, keepdims=True), 1)
    coefficients, *_ = np.linalg.lstsq(terms * scale, held * scale, rcond=None)
    grid = [dict(zip(names, values, strict=True)) for values in itertools.product(_GRID, repeat=len(names))]
    kept = dict.fromkeys(
        int(np.argmax(_terms(monomials, at) @ coefficients)) for at in [*grid, *(r.sizes for r in runs)]
    )
    return tuple(
        tuple(
            MemoryTerm(monomial, round(float(value)))
            for monomial, value in zip(monomials, coefficients[:, node], strict=True)
            if round(float(value))
        )
        for node in kept
    )


def _terms(monomials: Sequence[tuple[str, ...]], sizes: Mapping[str, int]) -> np.ndarray:
    return np.array([np.prod([float(sizes[name]) for name in monomial]) for monomial in monomials])


def _weights(model: ir.Model) -> tuple[int, int, tuple[GatheredTable, ...]]:
    """Bytes of weights that are read whole; of those, the ones that no product packs; tables read by rows."""
    read, always, gathered = 0, 0, list[GatheredTable]()
    inputs = set(model.graph.inputs)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        readers = [node for node, _ in value.uses()]
        if tensor is None or not readers or not isinstance(tensor, ir.ExternalTensor):
            continue
        by_rows = [
            n for n, i in value.uses() if n.op_type == "Gather" and i == 0 and not n.attributes.get_int("axis", 0)
        ]
        if len(by_rows) == len(readers):
            rows = int(tensor.shape.numpy()[0])
            indices = {_source(node.inputs[1]) for node in by_rows}
            known = {str(x.name) for x in indices if x in inputs}
            which = known.pop() if len(known) == len(indices) == 1 else None
            gathered.append(GatheredTable(which, rows, tensor.nbytes // max(rows, 1)))
            continue
        read += tensor.nbytes
        if not any(node.op_type in _PRODUCTS for node in readers):
            always += tensor.nbytes
    return read, always, tuple(gathered)


def _source(value: ir.Value | None) -> ir.Value | None:
    """Where the numbers come from, through nodes that only reshape them."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _PASS_THROUGH:
        value = node.inputs[0]
    return value
