"""Measurements of graphs: conversion, stages of it, ways of a convolution, operations counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import conversion, convolutions, gemm, stages
from benchmarks.measure import BenchmarkError
from tests.convert.bundles import to_bundle
from tests.convert.networks import FLOAT, Net, save


def test_conversion_reports_nodes_seconds_and_memory():
    body = conversion.run([1, 2], "thin", lambda _: None)
    first, second = body["conversions"]
    assert 0 < first["nodes"] < second["nodes"]
    assert first["seconds"] > 0
    assert first["peak_bytes"] is None or first["peak_bytes"] > 1e7
    table = conversion.markdown(body)
    assert f"| 2 | {second['nodes']:,} |" in table


@pytest.fixture
def gated(tmp_path):
    """first -> SiLU -> second, as a file."""
    net = Net(17)
    first = net.linear("x", "first", 8, 64)
    net.output(net.linear(net("Mul", first, net("Sigmoid", first)), "second", 64, 8), "y")
    return save(net.model([("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 8])]), tmp_path)


@pytest.mark.parametrize("stage", list(stages.STAGES))
def test_a_stage_is_measured_with_and_without(stage, gated):
    body = stages.run(stage, str(gated), batch=3, length=1, steps=2, progress=lambda _: None)
    for made in (body["seconds"], body["peak_bytes"], body["weights_bytes"]):
        assert set(made) == {"with", "without"}
        assert min(made.values()) > 0
    assert "| step, ms (median) |" in stages.markdown(body)


def test_a_stage_is_really_left_out(gated, tmp_path):
    """SiLU's own rule needs fewer nodes than those of its parts."""
    whole = to_bundle(gated, tmp_path, "whole")
    with stages.left_out("composites"):
        parts = to_bundle(gated, tmp_path, "parts")
    fewer, more = (len(training_nodes(bundle)) for bundle in (whole, parts))
    assert fewer < more


def training_nodes(bundle):
    file = bundle.path / bundle.training("cotangent", dropout=False).file
    return onnx.load(file, load_external_data=False).graph.node


@pytest.mark.parametrize("kind", ["strided depthwise 5×5", "strided 1-D", "1×1, late"])
def test_the_ways_of_an_input_gradient_agree_and_are_told(kind):
    body = convolutions.run([1], 2, 1, [kind], lambda _: None)
    (row,) = body["rows"]
    assert {"forward", "transposed"} < set(row["seconds"])
    assert kind in convolutions.markdown(body)


def test_unknown_convolutions_are_named():
    with pytest.raises(BenchmarkError, match=r"no convolution 9×9; there are 1×1"):
        convolutions.run([1], 2, 1, ["9×9"], lambda _: None)


def test_operations_of_a_step_by_hand(tmp_path: Path) -> None:
    """x -> frozen P -> frozen W with an adapter -> frozen V: P has no gradient, V needs that of its input."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = {"P": (8, 16), "W": (16, 32), "V": (32, 4)}
    graph = onnx.helper.make_graph(
        [
            make("MatMul", ["x", "P"], ["h"]),
            make("MatMul", ["h", "W"], ["base"]),
            make("MatMul", ["h", "A"], ["low"]),
            make("MatMul", ["low", "B"], ["delta"]),
            make("Add", ["base", "delta"], ["z"]),
            make("MatMul", ["z", "V"], ["y"]),
        ],
        "g",
        [value("x", FLOAT, ["n", 8]), value("A", FLOAT, [16, "r"]), value("B", FLOAT, ["r", 32])],
        [value("y", FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    path = tmp_path / "forward.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    count = gemm.OperationCount(path, frozenset({"A", "B"}))
    n, r = 5, 2
    feeds = {name: np.zeros(shape, np.float32) for name, shape in (("x", (n, 8)), ("A", (16, r)), ("B", (r, 32)))}
    frozen_before = 2 * n * 8 * 16
    frozen_beside = 2 * n * 16 * 32
    frozen_behind = 2 * (2 * n * 32 * 4)
    adapter = 2 * (2 * n * 16 * r) + 3 * (2 * n * r * 32)
    assert count.step(feeds) == frozen_before + frozen_beside + frozen_behind + adapter
    assert count.largest(feeds, 1) == [[n, 16, 32]]
