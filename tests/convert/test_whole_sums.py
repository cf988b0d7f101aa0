"""Products of codes in inference graphs: each output is the code that integers make, also beside the middle of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.normalize import OPSET
from edgelora_tools.passes.whole_sums import whole_sums
from edgelora_tools.runner import open_session

IN, OUT, SIDE, WINDOW, ROWS = 5, 4, 6, 3, 8
KINDS = ("Conv", "Gemm", "Gemm turned", "MatMul")
BOUNDS = {"": (-np.inf, np.inf), "Relu": (0, np.inf), "Clip": (0, 40)}  # in units of the output's scale


@dataclass(frozen=True)
class Layer:
    """A product of codes, with a bias and a bound; scales and zero points of its input, weight and output.

    X is `[rows, in]`, W `[out, in]`, with two axes more where it is a convolution.
    """

    kind: str
    bound: str
    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    scales: tuple[np.ndarray, np.ndarray, np.ndarray]
    zeros: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def units(self) -> np.ndarray:
        """s_x·s_w, in float32, as it broadcasts against the output."""
        units = self.scales[0] * self.scales[1]
        return units.reshape(-1, 1, 1) if self.kind == "Conv" and units.ndim else units

    def real_inputs(self) -> np.ndarray:
        return (self.x.astype(np.float64) - self.zeros[0]) * self.scales[0]

    def sums(self) -> np.ndarray:
        """Σ (x − z_x)·(w − z_w) + bias, in integers."""
        x, w = (q.astype(np.int64) - int(z.reshape(-1)[0]) for q, z in zip((self.x, self.w), self.zeros, strict=False))
        return product(x, w) + self.bias.reshape(-1, *[1] * (x.ndim - 2))

    def codes(self, over_scale: np.ndarray) -> np.ndarray:
        """The output's codes for numbers over its scale."""
        return np.clip(np.clip(over_scale, *BOUNDS[self.bound]) + int(self.zeros[2]), 0, 255)


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    if x.ndim == 2:
        return x @ w.T
    return np.einsum("nchwij,ocij->nohw", sliding_window_view(x, w.shape[2:], (2, 3)), w)


def layer_of(kind: str, bound: str, seed: int, several: bool, unsigned: bool) -> Layer:
    """At random, small numbers, and an output's scale that puts many sums beside the middle of two codes."""
    rng, (image, window) = np.random.default_rng(seed), ([SIDE] * 2, [WINDOW] * 2) if kind == "Conv" else ([], [])
    w_type, w_zero = (np.uint8, 128) if unsigned else (np.int8, 0)
    x_scale, w_scale = rng.uniform(0.001, 0.1, 2).astype(np.float32)
    y_scale = x_scale * w_scale * np.float32(rng.choice([2, 4, 10]))
    x_zero, y_zero = rng.integers(100, 150, 2).astype(np.uint8)
    scales = (w_scale * rng.choice([1, 0.5, 1.25], OUT)).astype(np.float32) if several else np.array(w_scale)
    return Layer(
        kind,
        bound,
        (rng.integers(-4, 5, (ROWS, IN, *image)) + int(x_zero)).astype(np.uint8),
        (rng.integers(-3, 4, (OUT, IN, *window)) + w_zero).astype(w_type),
        rng.integers(-50, 50, OUT),
        (np.array(x_scale), scales, np.array(y_scale)),
        (np.array(x_zero), np.full(scales.shape, w_zero, w_type), np.array(y_zero)),
    )


def model_of(layer: Layer) -> ir.Model:
    """From real numbers to those of the output's codes, with an adapter of inputs `a` and `b`."""
    builder = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="layer"))
    op, (s_x, s_w, s_y), (z_x, z_w, z_y) = builder.op, layer.scales, layer.zeros
    turned = layer.kind in ("Conv", "Gemm turned")
    x = builder.input("x", ir.DataType.FLOAT, list(layer.x.shape))
    shapes = ([IN, "r"], ["r", OUT]) if layer.x.ndim == 2 else (["r", IN, WINDOW, WINDOW], [OUT, "r", 1, 1])
    a, b = (builder.input(name, ir.DataType.FLOAT, list(shape)) for name, shape in zip("ab", shapes, strict=True))
    q = op.QuantizeLinear(x, held(op, s_x), held(op, z_x))
    q.shape, q.dtype = x.shape, ir.DataType.UINT8
    real = op.DequantizeLinear(q, held(op, s_x), held(op, z_x))
    codes = held(op, layer.w if turned else layer.w.T)
    w = op.DequantizeLinear(codes, held(op, s_w), held(op, z_w), axis=-layer.w.ndim if turned else -1)
    bias = held(op, (layer.bias * layer.units.reshape(-1)).astype(np.float32))
    if layer.kind == "Conv":
        y = op.Add(op.Conv(real, w, bias), op.Conv(op.Conv(real, a), b))
    else:
        y = op.Add(op.MatMul(real, w), bias) if layer.kind == "MatMul" else op.Gemm(real, w, bias, transB=int(turned))
        y = op.Add(y, op.MatMul(op.MatMul(real, a), b))
    if layer.bound:
        bounds = [held(op, np.float32(bound) * s_y) for bound in BOUNDS[layer.bound]] if layer.bound == "Clip" else []
        y = getattr(op, layer.bound)(y, *bounds)
    y = op.DequantizeLinear(op.QuantizeLinear(y, held(op, s_y), held(op, z_y)), held(op, s_y), held(op, z_y))
    y.name, y.shape, y.dtype = "y", ir.Shape([None] * layer.x.ndim), ir.DataType.FLOAT
    builder.graph.outputs.append(y)
    return ir.Model(builder.graph, ir_version=10)


def held(op: OpBuilder, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(
        np.ascontiguousarray(array).reshape(np.shape(array)), name=f"held.{len(op.builder.graph.initializers)}"
    )
    return op.builder.initializer(tensor, qualify=False)


def run(model: ir.Model, layer: Layer, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The output's codes."""
    turn = np.asarray if layer.x.ndim == 4 else np.transpose
    feeds = {"x": layer.real_inputs(), "a": turn(a), "b": turn(b)}
    with open_session(model) as session:
        (y,) = session.run(["y"], {name: np.ascontiguousarray(v, np.float32) for name, v in feeds.items()})
    return np.rint(np.asarray(y, np.float64) / layer.scales[2]) + int(layer.zeros[2])


def adapter(layer: Layer, seed: int, r: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """A and B, with the outputs first as the layer's weight has them."""
    rng, more = np.random.default_rng(seed), layer.w.shape[2:]
    a = rng.standard_normal((r, IN, *more)).astype(np.float32)
    return a, (size * rng.standard_normal((OUT, r, *(1 for _ in more)))).astype(np.float32)


def in_integers(layer: Layer) -> np.ndarray:
    """As XNNPACK has it: the sum as a float32, times m in float32, rounded to the even."""
    return layer.codes(np.rint(layer.sums().astype(np.float32) * (layer.units / layer.scales[2])))


LAYERS = st.builds(
    layer_of, st.sampled_from(KINDS), st.sampled_from([*BOUNDS]), st.integers(0, 9999), st.booleans(), st.booleans()
)


@given(layer=LAYERS, r=st.integers(0, 2))
@settings(max_examples=60)
def test_codes_are_those_of_integers(layer, r):
    """Where an adapter adds nothing: of rank 0, or with zeros in B."""
    found = run(whole_sums(model_of(layer)), layer, *adapter(layer, 0, r, 0.0))
    np.testing.assert_array_equal(found, in_integers(layer))


@given(layer=LAYERS, size=st.sampled_from([0.1, 10.0]))
@settings(max_examples=60)
def test_an_adapter_adds_what_it_added(layer, size):
    """Each code is the nearest to the exact sum with the adapter's, but for what float32 rounds."""
    a, b = adapter(layer, 1, 2, size * float(layer.scales[2]))
    found = run(whole_sums(model_of(layer)), layer, a, b)
    delta = product(product(layer.real_inputs(), a.astype(np.float64)), b.astype(np.float64))
    exact = layer.sums() * layer.units.astype(np.float64) + delta
    assert np.abs(found - layer.codes(exact / layer.scales[2])).max() < 0.501


@pytest.mark.parametrize("kind", KINDS)
def test_real_numbers_miss_some_of_these_codes(kind):
    """What the pass is for: as it stands, the graph puts some sums beside a middle on its other side."""
    layers = [layer_of(kind, "", seed, True, False) for seed in range(10)]
    assert any((run(model_of(one), one, *adapter(one, 0, 0, 0.0)) != in_integers(one)).any() for one in layers)
