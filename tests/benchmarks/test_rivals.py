"""Rivals: each by its name, its environment, its graph, or the reason why it is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest

from benchmarks.rivals import RIVALS, Unavailable, onnxsim_model, peft
from benchmarks.rivals.base import Place
from benchmarks.rivals.environments import environment
from tests.convert.networks import FLOAT


def test_torch_compile_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peft.shutil, "which", lambda _: None)
    with pytest.raises(Unavailable, match="compiler"):
        peft.COMPILED.contender(Place(tmp_path, tmp_path, tmp_path, 1, print), "all")


def test_an_environment_has_a_limit_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGELORA_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match=r"environment for toy: not done after 0 s"):
        environment("toy", ("toy==1",), print, limit=0.01)
    assert not list(tmp_path.rglob("packages.txt"))


def test_the_graph_for_onnxsim_means_what_it_meant() -> None:
    """GELU and Flatten, of which its trainer knows neither, written out."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [make("Flatten", ["x"], ["flat"], axis=-1), make("Gelu", ["flat"], ["y"])],
        "g",
        [value("x", FLOAT, [2, 3, 4])],
        [value("y", FLOAT, [6, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    onnxsim_model.write_out_gelu(model.graph)
    model = onnx.shape_inference.infer_shapes(model)
    onnxsim_model.flatten_to_reshape(model.graph)
    assert {node.op_type for node in model.graph.node} == {"Reshape", "Mul", "Erf", "Add"}
    (made,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(np.asarray(made), np.asarray(expected), rtol=1e-5, atol=1e-6)


def test_rivals_have_names_of_their_own() -> None:
    assert len({rival.name for rival in RIVALS}) == len(RIVALS)
