"""Gradients through graphs of codes on ONNX Runtime, against differences of the same graphs without rounding."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.reference import evaluator
from tests.gradients.surrogates import SURROGATES

STEP = 1e-5
REAL = ir.DataType.FLOAT
SHAPE = (2, 4, 6)
EXACT, ROUNDED = 1e-5, 1e-2
BENT = {"two factors", "computed scale"}
"""Graphs that are not linear in x: their gradient is taken at the rounded numbers, not at x itself."""


def const(op, value, dtype: Any = np.float32):
    return op.builder.initializer(ir.tensor(np.asarray(value, dtype), name=f"c{len(op.builder.graph.initializers)}"))


def quantize(op, x, dtype, scale=0.05, zero=0):
    return op.QuantizeLinear(x, const(op, scale), const(op, zero, dtype))


def dequantize(op, q, dtype, scale=0.05, zero=0):
    return op.DequantizeLinear(q, const(op, scale), const(op, zero, dtype))


def through(dtype, change=lambda op, q: q, scale=0.05, zero=0):
    """Codes of x, changed, as real numbers."""

    def graph(op, x):
        return dequantize(op, change(op, quantize(op, x, dtype, scale, zero)), dtype, scale, zero)

    return graph


def dynamically(op, x):
    """What quantize_dynamic makes of a linear layer."""
    weight = const(op, np.random.default_rng(1).integers(-60, 60, (6, 5)), np.int8)
    q, s, z = op.DynamicQuantizeLinear(x, _outputs=3)
    product = op.MatMulInteger(q, weight, z, const(op, 3, np.int8))
    return op.Mul(op.Cast(product, to=REAL), op.Mul(s, const(op, 0.02)))


def there_and_back(op, x):
    q, s, z = op.DynamicQuantizeLinear(x, _outputs=3)
    return op.DequantizeLinear(q, s, z)


def attention_of_codes(op, x):
    """A product of two dynamically quantized factors."""
    q, s, z = op.DynamicQuantizeLinear(x, _outputs=3)
    product = op.MatMulInteger(q, op.Transpose(q, perm=[0, 2, 1]), z, z)
    return op.Mul(op.Cast(product, to=REAL), op.Mul(s, s))


def biased(op, x):
    """An int32 bias is added to the integer product."""
    weight = const(op, np.random.default_rng(1).integers(-60, 60, (6, 5)), np.int8)
    product = op.MatMulInteger(quantize(op, x, np.uint8, zero=128), weight, const(op, 128, np.uint8))
    total = op.Add(product, const(op, [5, -900, 70, 0, 3], np.int32))
    return op.Mul(op.Cast(total, to=REAL), const(op, 0.001))


def computed_scale(op, x):
    """The scale is the largest element's, computed in the graph: the whole is the identity but for rounding."""
    s = op.Div(op.ReduceMax(op.Abs(x), keepdims=0), const(op, 127.0))
    return op.DequantizeLinear(op.QuantizeLinear(x, s, const(op, 0, np.int8)), s, const(op, 0, np.int8))


QUANTIZED = {operator.__name__ for operator in SURROGATES}


def real(graph):
    """The graph in float64, codes and what is computed with them too; quantized operators keep their constants."""
    model = ir.Model(graph.clone(), ir_version=10)
    for node in model.graph:
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.DOUBLE))
        for i, x in enumerate(node.inputs if node.op_type not in QUANTIZED else ()):
            if x is not None and x.const_value is not None and x.dtype not in (ir.DataType.INT64, ir.DataType.DOUBLE):
                wide = ir.tensor(x.const_value.numpy().astype(np.float64), name=f"{x.name}.wide.{node.name}.{i}")
                node.replace_input_with(i, GraphBuilder(model.graph).initializer(wide))
    return model


def output_of(forward, x):
    (y,) = list(forward.run(None, {"x": x}))
    return np.asarray(y, np.float64)


INT8, UINT8 = np.int8, np.uint8
GRAPHS = {
    "int8": through(INT8),
    "uint8": through(UINT8, zero=128),
    "int16": through(np.int16, scale=0.01),
    "uint16": through(np.uint16, scale=0.01, zero=30000),
    "int4": through(ml_dtypes.int4, scale=0.6),
    "uint4": through(ml_dtypes.uint4, scale=0.6, zero=7),
    "float8e4m3fn": through(ml_dtypes.float8_e4m3fn),
    "float8e5m2": through(ml_dtypes.float8_e5m2),
    "saturated": through(INT8, scale=0.004, zero=9),
    "Reshape": through(INT8, lambda op, q: op.Reshape(q, [4, -1])),
    "Flatten": through(INT8, lambda op, q: op.Flatten(q)),
    "Transpose": through(INT8, lambda op, q: op.Transpose(q, perm=[2, 0, 1])),
    "Concat": through(INT8, lambda op, q: op.Concat(q, q, axis=1)),
    "Slice": through(INT8, lambda op, q: op.Slice(q, [1], [5], [2])),
    "strided Slice": through(INT8, lambda op, q: op.Slice(q, [0], [6], [2], [2])),
    "Gather": through(INT8, lambda op, q: op.Gather(q, const(op, [[0, 2], [2, 3]], np.int64), axis=1)),
    "Gather one": through(INT8, lambda op, q: op.Gather(q, const(op, 1, np.int64), axis=1)),
    "Split": through(INT8, lambda op, q: op.Split(q, num_outputs=2, axis=1, _outputs=2)[1]),
    "Squeeze": through(INT8, lambda op, q: op.Squeeze(op.Unsqueeze(q, [0]), [0])),
    "Pad": through(INT8, lambda op, q: op.Pad(q, [0, 1, 0, 0, 0, 2], const(op, 3, INT8))),
    "Expand": through(INT8, lambda op, q: op.Expand(op.Unsqueeze(q, [0]), [3, 2, 4, 6])),
    "Max": through(INT8, lambda op, q: op.Max(q, const(op, 5, INT8)), scale=0.03),
    "Clip": through(INT8, lambda op, q: op.Clip(q, const(op, -9, INT8), const(op, 12, INT8))),
    "Relu": through(INT8, lambda op, q: op.Relu(q)),
    "MaxPool": through(INT8, lambda op, q: op.MaxPool(q, kernel_shape=[2], strides=[2])),
    "DynamicQuantizeLinear": there_and_back,
    "MatMulInteger": dynamically,
    "two factors": attention_of_codes,
    "int32 bias": biased,
    "computed scale": computed_scale,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_gradient_passes_straight_through(name):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="codes")
    builder = GraphBuilder(graph)
    op = builder.op
    x = builder.input("x", REAL, list(SHAPE))
    y = GRAPHS[name](op, x)
    builder.add_output(y, "y")
    forward = evaluator(real(graph), SURROGATES)
    c = builder.input("c", REAL, y.shape)
    grads = differentiate(op, list(graph), {y: c}, [x])
    builder.add_output(op.Identity(grads[x]), "dx")
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])

    rng = np.random.default_rng(0)
    at = rng.standard_normal(SHAPE)
    weights = rng.standard_normal(output_of(forward, at).shape)
    (made,) = session.run(["dx"], {"x": at.astype(np.float32), "c": weights.astype(np.float32)})
    dx = np.asarray(made, np.float64)
    assert np.abs(dx).max() > 0
    for _ in range(3):
        v = rng.standard_normal(SHAPE)
        rise = output_of(forward, at + STEP * v) - output_of(forward, at - STEP * v)
        numeric = float(np.sum(weights * rise)) / (2 * STEP)
        assert abs(numeric - np.sum(dx * v)) <= (ROUNDED if name in BENT else EXACT) * max(
            abs(numeric), np.linalg.norm(dx)
        )
