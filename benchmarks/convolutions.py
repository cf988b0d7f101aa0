"""The input gradient of a frozen convolution in all its ways, as ratios to the layer's own forward pass.

Every way is a graph of its own, with the kernel as a constant; all run in turn, in one process, and the ratio is that
of medians. With one thread the time is the thread's own, which other processes do not lengthen. The results of all
ways are held against each other.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.convolution_ways import WAYS
from benchmarks.measure import BenchmarkError
from edgelora.session import Graph, SessionSettings
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.windows import window_of
from edgelora_tools.passes.tidy import tidy

FORWARD = "forward"
_WARM, _TOLERANCE = 2, 1e-4


@dataclass(frozen=True)
class Kind:
    """A convolution of `channels` to `out` on images of `size`; the padding keeps the size, over the stride."""

    name: str
    channels: int
    out: int
    size: tuple[int, ...]
    kernel: int
    stride: int = 1
    group: int = 1

    @property
    def places(self) -> tuple[int, ...]:
        return tuple(-(-n // self.stride) for n in self.size)


KINDS = (
    Kind("1×1, wide to narrow", 144, 24, (56, 56), 1),
    Kind("1×1, narrow to wide", 24, 144, (56, 56), 1),
    Kind("1×1, late", 160, 960, (7, 7), 1),
    Kind("3×3", 64, 64, (56, 56), 3),
    Kind("3×3, late", 256, 256, (14, 14), 3),
    Kind("depthwise 3×3", 144, 144, (56, 56), 3, group=144),
    Kind("depthwise 3×3, late", 960, 960, (7, 7), 3, group=960),
    Kind("depthwise 5×5", 240, 240, (28, 28), 5, group=240),
    Kind("strided 3×3", 64, 128, (56, 56), 3, 2),
    Kind("strided 1×1", 64, 128, (56, 56), 1, 2),
    Kind("strided depthwise 3×3", 144, 144, (56, 56), 3, 2, 144),
    Kind("strided depthwise 3×3, early", 96, 96, (112, 112), 3, 2, 96),
    Kind("strided depthwise 5×5", 240, 240, (28, 28), 5, 2, 240),
    Kind("grouped 3×3", 128, 128, (28, 28), 3, group=32),
    Kind("stem 7×7", 3, 64, (112, 112), 7, 2),
    Kind("1-D", 128, 128, (1000,), 9),
    Kind("strided 1-D", 128, 128, (1000,), 9, 2),
)


def run(
    threads: Sequence[int], batch: int, runs: int, only: Sequence[str] | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every kind with each number of threads; the body of the report.

    Raises:
        BenchmarkError: there is no such kind, or two ways disagree.
    """
    known = {kind.name: kind for kind in KINDS}
    if unknown := set(only or ()) - set(known):
        raise BenchmarkError(f"no convolution {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgelora-convolutions-") as folder:
        for kind in (known[name] for name in only or known):
            progress(kind.name)
            paths = write_ways(kind, batch, Path(folder))
            for count in threads:
                seconds = measure(kind, paths, batch, count, runs)
                rows.append({"kind": kind.name, "threads": count, "seconds": seconds})
    machine = {"cores": os.cpu_count(), "system": platform.platform()}
    return {"case": "convolutions", "batch": batch, "runs": runs, "machine": machine, "rows": rows}


def write_ways(kind: Kind, batch: int, folder: Path) -> dict[str, Path]:
    """The graphs of the forward pass and of each way that there is for the kind, by name."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((kind.out, kind.channels // kind.group, *[kind.kernel] * len(kind.size)))
    paths = {}
    for name in (FORWARD, *WAYS):
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="convolution")
        op = GraphBuilder(graph).op
        w = op.builder.initializer(ir.tensor(weight.astype(np.float32), name="w"))
        given = op.builder.input("given", ir.DataType.FLOAT, ["batch", *_shape(kind, name)])
        if name == FORWARD:
            made = _convolution(op, kind, given, w)
        else:
            x = ir.Value(name="x", shape=ir.Shape(["batch", kind.channels, *kind.size]), type=given.type)
            node = _convolution(op, kind, x, w).producer()
            assert node is not None
            window = window_of(op, node, operands(node)[0], [kind.kernel] * len(kind.size))
            made = WAYS[name](op, given, x, w, window, kind.group)
            graph.remove(node)
        if made is None:
            continue
        made.name = "made"
        graph.outputs.append(made)
        path = folder / f"{len(paths)}.onnx"
        ir.save(tidy(ir.Model(graph, ir_version=10)), path)
        paths[name] = path
    return paths


def _shape(kind: Kind, way: str) -> tuple[int, ...]:
    return (kind.channels, *kind.size) if way == FORWARD else (kind.out, *kind.places)


def _convolution(op: Any, kind: Kind, x: ir.Value, w: ir.Value) -> ir.Value:
    axes = len(kind.size)
    total = [max((p - 1) * kind.stride + kind.kernel - n, 0) for p, n in zip(kind.places, kind.size, strict=True)]
    after = [n - n // 2 for n in total]
    pads = [n // 2 for n in total] + after
    if kind.kernel % 2:
        pads = [kind.kernel // 2] * 2 * axes
    return op.Conv(x, w, pads=pads, strides=[kind.stride] * axes, group=kind.group, kernel_shape=[kind.kernel] * axes)


def measure(kind: Kind, paths: Mapping[str, Path], batch: int, threads: int, runs: int) -> dict[str, float]:
    """Seconds of each way, the median of its runs."""
    graphs = {name: Graph(path, SessionSettings(threads=threads)) for name, path in paths.items()}
    rng = np.random.default_rng(1)
    images = {
        shape: rng.standard_normal((batch, *shape)).astype(np.float32)
        for shape in {_shape(kind, name) for name in paths}
    }
    clock = time.thread_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    made: dict[str, np.ndarray] = {}
    for turn in range(runs + _WARM):
        for name, graph in graphs.items():
            feeds = {"given": images[_shape(kind, name)]}
            started = clock()
            out = graph.run(feeds)["made"]
            if turn >= _WARM:
                seconds[name].append(clock() - started)
            made.setdefault(name, out)
    ways = [name for name in paths if name != FORWARD]
    for name in ways[1:]:
        if not np.allclose(made[name], made[ways[0]], _TOLERANCE, _TOLERANCE * np.abs(made[name]).max()):
            raise BenchmarkError(f"{kind.name}: {name} and {ways[0]} disagree")
    return {name: float(np.median(s)) for name, s in seconds.items()}


def markdown(body: Mapping[str, Any]) -> str:
    """A row for each kind and number of threads: the forward pass in ms, and the ratio of each way to it."""
    lines = [
        f"Input gradients of frozen convolutions, batch {body['batch']}, as ratios to the layer's own forward pass.",
        "",
        f"| convolution | threads | forward, ms | {' | '.join(WAYS)} |",
        f"|---|---:|---:|{'---:|' * len(WAYS)}",
    ]
    for row in body["rows"]:
        seconds = row["seconds"]
        ratios = {name: s / seconds[FORWARD] for name, s in seconds.items() if name != FORWARD}
        least = min(ratios.values())
        cells = [f"**{r:.2f}**" if r == least else f"{r:.2f}" for r in (ratios.get(n, 0.0) for n in WAYS)]
        shown = [cell if name in ratios else "–" for name, cell in zip(WAYS, cells, strict=True)]
        lines.append(f"| {row['kind']} | {row['threads']} | {seconds[FORWARD] * 1e3:.2f} | {' | '.join(shown)} |")
    return "\n".join(lines)
