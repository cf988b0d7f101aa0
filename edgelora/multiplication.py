"""What this device's cores can multiply, and how much a graph multiplies: the two sides of "share of the peak".

The peak is that of one float32 product, by whichever is fastest: ONNX Runtime with a part of the rows on each core, as
`train` computes a batch, ONNX Runtime with all cores at one product, or numpy. The operations of a graph are read from
ONNX Runtime's own profile of one run: a product Y = A·B of length K costs 2·|Y|·K, in whatever numbers it is computed,
and what is computed twice counts twice.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelora.session import Feeds, Graph, NodeRun, SessionSettings, profile

_SQUARE, _RUNS = 768, 3
_FLOAT = 1
# Where an operator has its second factor; all others are not counted.
_PRODUCTS = {
    "MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "FusedGemm": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1, "QLinearMatMul": 3, "QGemm": 3,
}  # fmt: skip
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
_PACKED = ("MatMulNBits",)


class Products:
    """X·W of float32 `[m, k]` and `[k, n]`, W constant, by each way that there is; `close` releases the threads."""

    def __init__(self, m: int, k: int, n: int, cores: int) -> None:
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        y = np.empty((m, n), np.float32)
        self.operations = 2.0 * m * k * n
        self._pool = ThreadPoolExecutor(cores)
        with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
            path = Path(folder) / "product.onnx"
            path.write_bytes(product_graph(w))
            alone, shared = (Graph(path, SessionSettings(threads=threads, spinning=True)) for threads in (1, cores))
        parts = [{"x": part} for part in np.array_split(x, cores)]
        self.ways: dict[str, Callable[[], Any]] = {
            "ONNX Runtime": lambda: shared.run({"x": x}),
            "numpy": lambda: np.matmul(x, w, out=y),
        }
        if cores > 1:
            self.ways["ONNX Runtime, a part a core"] = lambda: list(self._pool.map(alone.run, parts))

    def rates(self, runs: int = _RUNS) -> dict[str, float]:
        """Operations a second of each way: the best of some runs in a row, since threads sleep and caches are cold."""
        return {way: self.operations / min(_seconds(run) for _ in range(runs)) for way, run in self.ways.items()}

    def close(self) -> None:
        self._pool.shutdown()


def square(cores: int) -> Products:
    """The product by which a device's peak is told."""
    return Products(_SQUARE, _SQUARE, _SQUARE, cores)


def operations(path: Path, settings: SessionSettings, feeds: Feeds) -> float:
    """How many float operations the products of one run of a graph are, all outputs included.

    Weights are left as they are for it: the profile does not tell the size of one that was packed.
    """
    nodes = profile(path, replace(settings, low_memory=True), feeds)
    return float(sum(map(_of_node, nodes)))


def _of_node(node: NodeRun) -> int:
    op, inputs, outputs = node.op, node.inputs, node.outputs
    if op in _PRODUCTS:
        a, b, y = (math.prod(shape[-2:]) for shape in (inputs[0], inputs[_PRODUCTS[op]], outputs[0]))
        length = math.isqrt(a * b // y) if y else 0  # (M·K)·(K·N)/(M·N) = K², whichever factor is transposed
        return 2 * math.prod(outputs[0]) * length
    if op in _CONVOLUTIONS:
        seen = inputs[0] if op == "ConvTranspose" else outputs[0]
        return 2 * math.prod(seen) * math.prod(inputs[_CONVOLUTIONS[op]][1:])
    if op in _PACKED:
        return 2 * math.prod(outputs[0]) * inputs[0][-1]
    return 0


def product_graph(w: np.ndarray) -> bytes:
    """An ONNX model of `y = MatMul(x, w)` with a constant float32 w `[k, n]` (onnx.proto), without the onnx package."""
    k, n = w.shape
    weight = _fields((1, k), (1, n), (2, _FLOAT), (8, b"w"), (9, np.ascontiguousarray(w, "<f4").tobytes()))
    node = _fields((1, b"x"), (1, b"w"), (2, b"y"), (4, b"MatMul"))
    graph = [(1, node), (2, b"product"), (5, weight), (11, _matrix(b"x", k)), (12, _matrix(b"y", n))]
    return _fields((1, 8), (7, _fields(*graph)), (8, _fields((1, b""), (2, 17))))


def _matrix(name: bytes, columns: int) -> bytes:
    """A ValueInfoProto: float32 `[rows, columns]`."""
    shape = _fields((1, _fields((2, b"rows"))), (1, _fields((1, columns))))
    return _fields((1, name), (2, _fields((1, _fields((1, _FLOAT), (2, shape))))))


def _fields(*fields: tuple[int, int | bytes]) -> bytes:
    """Fields of a protobuf message, in order: numbers as varints, bytes with their length."""
    made = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            made += _varint(number << 3) + _varint(value)
        else:
            made += _varint(number << 3 | 2) + _varint(len(value)) + value
    return bytes(made)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def _seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def fastest(rates: Iterable[Mapping[str, float]]) -> float:
    """The rate of the way whose median is the largest."""
    found = list(rates)
    return max(float(np.median([rate[way] for rate in found])) for way in found[0])
