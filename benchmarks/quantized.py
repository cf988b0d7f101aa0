"""What a quantized base brings: one model converted in float32, int8 and int4, and the bundles measured in turn.

A step is one run of the cotangent graph; peak memory is that of a fresh process that takes three. A quantized base is
calibrated on CLINC150's training utterances; its points' cosines are those that `edgelora check` reports. Beside int4,
which takes 4 bits where the cosines allow, stand the weights of 8 bits that it takes elsewhere.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import clinc
from benchmarks.measure import BenchmarkError
from benchmarks.stages import cotangent_feeds, peak_of

SHAPES = ((32, 20), (8, 128))
ROWS, SIZES = 640, ((384, 384), (384, 1536), (1536, 384))
REAL, INT8, INT4, WEIGHTS = "float32", "int8", "int4", "int4 with no 4 bits"
_WARM = 2


def run(steps: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Convert every way and measure at every shape; the body of the report.

    Raises:
        BenchmarkError: the model or the data cannot be had, or a measurement failed.
    """
    from edgelora.bundle import Bundle
    from edgelora.errors import EdgeLoraError
    from edgelora.quantization import check_quantization
    from edgelora.session import SessionSettings
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.ladders import RUNGS
    from edgelora_tools.recipes import fetch, load_recipe
    from edgelora_tools.sources import open_source

    with tempfile.TemporaryDirectory(prefix="edgelora-quantized-") as folder:
        calibration = clinc.write_calibration(Path(folder) / "calibration.jsonl")
        bundles: dict[str, Bundle] = {}
        try:
            recipe = load_recipe(clinc.RECIPE)
            source = open_source(str(fetch(recipe, progress)))
            for side in (REAL, INT8, INT4, WEIGHTS):
                progress(f"converting to {side}")
                quantize = INT4 if side == WEIGHTS else side
                chosen: dict[str, Any] = {} if side == REAL else {"quantize": quantize, "calibration": calibration}
                path = Path(folder) / f"{side}.edgelora"
                with patch.dict(RUNGS, {INT4: RUNGS[INT4][1:]} if side == WEIGHTS else {}):
                    convert(source, path, ConvertOptions(target_modules=recipe.target_modules, **chosen))
                bundles[side] = Bundle.open(path, SessionSettings(threads=2))
            quantized = {side: bundle for side, bundle in bundles.items() if side != REAL}
            cosines = {side: {q.id: q.cosine for q in check_quantization(b)} for side, b in quantized.items()}
        except EdgeLoraError as error:
            raise BenchmarkError(str(error)) from error
        shapes = []
        for batch, length in SHAPES:
            progress(f"{batch} × {length}")
            feeds = cotangent_feeds(bundles[REAL], batch, length)
            seconds = _alternate(bundles, feeds, steps)
            peaks = {side: peak_of(Path(folder), side, feeds) for side in bundles}
            shapes.append({"batch": batch, "length": length, "seconds": seconds, "peak_bytes": peaks})
        weights = {side: bundle.manifest.files["weights.bin"].size for side, bundle in bundles.items()}
        products = {side: dict(bundle.manifest.source["products"]) for side, bundle in quantized.items()}
    progress("single products")
    single = time_products(10 * steps)
    return {
        "case": "quantize",
        "single": single,
        "shapes": shapes,
        "weights_bytes": weights,
        "cosines": cosines,
        "products": products,
    }


def time_products(repeats: int) -> list[dict[str, Any]]:
    """Seconds of one forward product of ROWS rows at each size and rung, sessions in turn."""
    import onnx_ir as ir

    from edgelora.session import Graph, SessionSettings
    from edgelora_tools.builder import GraphBuilder
    from edgelora_tools.graphs import LOWERED
    from edgelora_tools.lowering import DOMAIN, lower_nodes
    from edgelora_tools.passes.quantize import Choice, Rung, quantize

    rng, found = np.random.default_rng(0), []
    for k, n in SIZES:
        x = rng.standard_normal((ROWS, k)).astype(np.float32)
        weight = ir.tensor((rng.standard_normal((k, n)) / k**0.5).astype(np.float32), name="weight")
        with tempfile.TemporaryDirectory(prefix="edgelora-products-") as folder:
            graphs: dict[str, Graph] = {}
            for rung in Rung:
                graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="product")
                op = GraphBuilder(graph).op
                y = op.MatMul(op.builder.input("x", ir.DataType.FLOAT, ["rows", k]), op.builder.initializer(weight))
                y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(["rows", n])
                graph.outputs.append(y)
                model = quantize(ir.Model(graph, ir_version=10), {"weight": Choice(rung)})
                lower_nodes(model.graph, op, LOWERED)
                model.graph.opset_imports.pop(DOMAIN, None)
                path = Path(folder) / f"{rung.name}.onnx"
                ir.save(model, path)
                graphs[str(rung)] = Graph(path, SessionSettings(threads=2))
            seconds: dict[str, list[float]] = {name: [] for name in graphs}
            for _ in range(repeats + _WARM):
                for name, product in graphs.items():
                    started = time.perf_counter()
                    product.run({"x": x})
                    seconds[name].append(time.perf_counter() - started)
        found.append({"in": k, "out": n, "seconds": {name: float(np.median(t[_WARM:])) for name, t in seconds.items()}})
    return found


def markdown(body: Mapping[str, Any]) -> str:
    """The tables: steps and memory at each shape, then the products and the cosines."""
    sides = list(body["products"])
    lines = [f"| | {REAL} | {' | '.join(f'{side} | ratio' for side in sides)} |"]
    lines.append("|---" * (2 + 2 * len(sides)) + "|")

    def row(label: str, values: Mapping[str, float], factor: float, ratios: Mapping[str, float] | None = None) -> None:
        ratios = ratios or {side: values[side] / values[REAL] for side in sides}
        cells = (f"{values[side] * factor:,.1f} | {ratios[side]:.2f}" for side in sides)
        lines.append(f"| {label} | {values[REAL] * factor:,.1f} | {' | '.join(cells)} |")

    for shape in body["shapes"]:
        size, seconds = f"{shape['batch']} × {shape['length']}", shape["seconds"]
        paired = {side: float(np.median(np.divide(seconds[side], seconds[REAL]))) for side in sides}
        row(f"step, ms, {size}", {s: float(np.median(t)) for s, t in seconds.items()}, 1e3, paired)
        row(f"peak memory, MB, {size}", shape["peak_bytes"], 1e-6)
    row("weights.bin, MB", body["weights_bytes"], 1e-6)
    names = list(body["single"][0]["seconds"])
    lines += ["", f"| {ROWS} rows, ms | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for one in body["single"]:
        times = " | ".join(f"{1e3 * one['seconds'][name]:.2f}" for name in names)
        lines.append(f"| {one['in']} × {one['out']} | {times} |")
    lines.append("")
    for side, counts in body["products"].items():
        lines.append(f"{side}, products: " + "; ".join(f"{n} {how}" for how, n in counts.items()))
    lines += ["", f"| gradient cosine | {' | '.join(sides)} |", "|---" * (1 + len(sides)) + "|"]
    for name in body["cosines"][sides[0]]:
        lines.append(f"| {name} | {' | '.join(format(body['cosines'][side][name], '.4f') for side in sides)} |")
    return "\n".join(lines)


def _alternate(bundles: Mapping[str, Any], feeds: Mapping[str, np.ndarray], steps: int) -> dict[str, list[float]]:
    graphs = {side: b.graph(b.training("cotangent", dropout=False).file) for side, b in bundles.items()}
    seconds: dict[str, list[float]] = {side: [] for side in bundles}
    for step in range(steps + _WARM):
        for side, graph in graphs.items():
            started = time.perf_counter()
            graph.run(feeds)
            if step >= _WARM:
                seconds[side].append(time.perf_counter() - started)
    return seconds
