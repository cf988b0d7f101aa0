"""What a graph multiplies, against counting by hand, and the products by which the peak is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgelora.multiplication import Products, fastest, operations
from edgelora.session import SessionSettings

N = 5
FLOAT = onnx.TensorProto.FLOAT


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)


def counted(folder: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: list[int]) -> float:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [value("x", FLOAT, ["n", *shape])], [value("y", FLOAT, None)], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "graph.onnx")
    return operations(folder / "graph.onnx", SessionSettings(threads=1), {"x": np.ones((N, *shape), np.float32)})


make = onnx.helper.make_node


@pytest.mark.parametrize(
    ("nodes", "weights", "shape", "expected"),
    [
        ([make("MatMul", ["x", "w"], ["y"])], [weight("w", 8, 16)], [8], 2 * N * 8 * 16),
        ([make("MatMul", ["x", "w"], ["y"])], [weight("w", 8, 16)], [3, 8], 2 * N * 3 * 8 * 16),
        ([make("Gemm", ["x", "w"], ["y"], transB=1)], [weight("w", 16, 8)], [8], 2 * N * 8 * 16),
        ([make("Gemm", ["x", "w"], ["y"], transA=1)], [weight("w", N, 16)], [8], 2 * N * 8 * 16),
        (
            [make("Transpose", ["x"], ["t"], perm=[0, 2, 1]), make("MatMul", ["x", "t"], ["y"])],
            [],
            [7, 4],
            2 * N * 7 * 4 * 7,
        ),
        ([make("Conv", ["x", "w"], ["y"], group=2)], [weight("w", 6, 2, 3, 3)], [4, 9, 9], 2 * N * 6 * 49 * 2 * 9),
        ([make("ConvTranspose", ["x", "w"], ["y"])], [weight("w", 4, 6, 3, 3)], [4, 9, 9], 2 * N * 4 * 81 * 6 * 9),
        ([make("Relu", ["x"], ["y"])], [], [8], 0),
    ],
)
def test_operations_by_hand(tmp_path, nodes, weights, shape, expected):
    assert counted(tmp_path, nodes, weights, shape) == expected


def test_integer_products_count_as_well(tmp_path):
    codes = onnx.numpy_helper.from_array(np.ones((8, 16), np.int8), "w")
    nodes = [
        make("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        make("MatMulInteger", ["q", "w", "z"], ["i"]),
        make("Cast", ["i"], ["y"], to=FLOAT),
    ]
    assert counted(tmp_path, nodes, [codes], [8]) == 2 * N * 8 * 16


def test_every_way_computes_the_same_product():
    products = Products(6, 5, 4, cores=2)
    shared, parts, plain = (products.ways[way]() for way in ("ONNX Runtime", "ONNX Runtime, a part a core", "numpy"))
    np.testing.assert_allclose(shared["y"], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([part["y"] for part in parts]), plain, rtol=1e-5, atol=1e-6)
    rates = [products.rates() for _ in range(3)]
    products.close()
    assert set(rates[0]) == set(products.ways)
    assert fastest(rates) > 0


def test_the_fastest_way_has_the_largest_median():
    assert fastest([{"a": 1.0, "b": 9.0}, {"a": 5.0, "b": 2.0}, {"a": 6.0, "b": 3.0}]) == 5
