"""Points that are asked several at a time: right gradients pass in few runs, and of wrong ones each is named."""

from __future__ import annotations

import collections
import importlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.manifest import InsertionPoint
from edgelora.parity import parity_samples
from edgelora.point_groups import check_points
from edgelora.session import Graph
from tests.convert.test_check import edit, insert_after
from tests.language_models import to_language_bundle

TRAINING = "train-cross-entropy.onnx"


@pytest.fixture(scope="module")
def bundle(language_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With a point at every product."""
    path = tmp_path_factory.mktemp("groups") / "all.edgelora"
    return Bundle.open(to_language_bundle(language_folder, path, target_modules=".*"))


def wrong_points(bundle: Bundle, seed: int = 0) -> list[str]:
    verdicts = check_points(bundle, points_of(bundle), parity_samples(bundle)[1][0], np.random.default_rng(seed))
    assert [verdict.id for verdict in verdicts] == [point.id for point in points_of(bundle)]
    return [verdict.id for verdict in verdicts if not verdict.passed]


def points_of(bundle: Bundle) -> Sequence[InsertionPoint]:
    return bundle.manifest.trainable


@pytest.fixture
def altered(bundle: Bundle, tmp_path: Path) -> Callable[[Mapping[str, float]], Bundle]:
    """altered({tensor: factor}): the bundle with a training graph whose gradients are that many times too large."""

    def made(factors: Mapping[str, float]) -> Bundle:
        path = tmp_path / "altered.edgelora"
        shutil.copytree(bundle.path, path)

        def change(graph: Any) -> None:
            for number, (tensor, factor) in enumerate(factors.items()):
                gradient, before = f"grad.{tensor}", f"before {number}"
                for node in graph.node:
                    node.output[:] = [before if y == gradient else y for y in node.output]
                value = np.asarray(factor, np.float32)
                graph.initializer.append(onnx.numpy_helper.from_array(value, f"factor {number}"))
                graph.node.append(onnx.helper.make_node("Mul", [before, f"factor {number}"], [gradient]))

        edit(path, TRAINING, change)
        return Bundle.open(path)

    return made


@pytest.mark.parametrize("seed", range(6))
def test_right_gradients_pass(seed: int, bundle: Bundle) -> None:
    assert len(points_of(bundle)) > 8
    assert wrong_points(bundle, seed) == []


def test_a_group_takes_one_gradient_and_eight_values(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = collections.Counter[int]()
    run = Graph.run

    def counted(graph: Graph, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Any:
        runs[id(graph)] += 1
        return run(graph, feeds, outputs)

    monkeypatch.setattr(Graph, "run", counted)
    assert wrong_points(bundle) == []
    language = bundle.manifest.language
    assert language is not None
    groups = -(-len(points_of(bundle)) // 8)
    assert runs[id(bundle.graph(TRAINING))] == 1 + groups
    assert runs[id(bundle.graph(language.score))] == 1 + 9 * groups  # of which one is where the group stands


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.9, 1.1, np.nan])
@pytest.mark.parametrize("tensor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("module", ["q_proj", "down_proj", "lm_head"])
def test_a_wrong_gradient_is_named_alone(
    module: str, tensor: str, factor: float, bundle: Bundle, altered: Callable[[Mapping[str, float]], Bundle]
) -> None:
    name = next(point.id for point in points_of(bundle) if point.id.endswith(module))
    wrong = altered({f"{name}.{tensor}": factor})
    assert all(wrong_points(wrong, seed) == [name] for seed in range(3))


def test_opposite_errors_of_a_point_do_not_undo_each_other(
    bundle: Bundle, altered: Callable[[Mapping[str, float]], Bundle]
) -> None:
    name = points_of(bundle)[3].id
    wrong = altered({f"{name}.lora_A": 1.1, f"{name}.lora_B": 1 / 1.1})
    assert all(wrong_points(wrong, seed) == [name] for seed in range(3))


@pytest.mark.parametrize("factor", [-1.0, 1.1])
def test_a_like_error_everywhere_is_everyones(
    factor: float, bundle: Bundle, altered: Callable[[Mapping[str, float]], Bundle]
) -> None:
    names = [point.id for point in points_of(bundle)]
    wrong = altered({f"{name}.{tensor}": factor for name in names for tensor in ("lora_A", "lora_B")})
    assert wrong_points(wrong) == names


def test_a_tensor_without_a_gradient_is_named(bundle: Bundle, tmp_path: Path) -> None:
    path, point = tmp_path / "less.edgelora", points_of(bundle)[-1]
    shutil.copytree(bundle.path, path)

    def drop(graph: Any) -> None:
        kept = [y for y in graph.output if y.name != f"grad.{point.input_b}"]
        del graph.output[:]
        graph.output.extend(kept)

    edit(path, TRAINING, drop)
    assert wrong_points(Bundle.open(path)) == [point.id]


def test_check_asks_so_where_points_are_many(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tells how many are done."""
    monkeypatch.setattr(importlib.import_module("edgelora.check"), "_MANY", 8)
    path, point = tmp_path / "wrong.edgelora", points_of(bundle)[0]
    shutil.copytree(bundle.path, path)
    edit(path, TRAINING, insert_after(f"grad.{point.input_a}", "Neg"))
    told: list[str] = []
    verdict = check(Bundle.open(path), progress=told.append)
    assert [one.id for one in verdict.points if not one.passed] == [point.id]
    count = len(points_of(bundle))
    assert f"point 1 of {count}: {point.id}" in told
    assert sum(line.startswith("point ") for line in told) == -(-count // 8)
