"""Runs into places that stay bound: the same bits as a run of its own, whatever is fed before and after."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgelora.errors import BundleError
from edgelora.session import Graph, Places, SessionSettings

onnx = pytest.importorskip("onnx")
PRODUCT = """<ir_version: 9, opset_import: ["" : 17]>
g (float[n,4] x, float[4,r] a, float[r,3] b) => (float[n,3] y) { h = MatMul(x, a)
 y = MatMul(h, b) }"""
STAYING = frozenset({"a", "b"})


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path: Path = tmp_path_factory.mktemp("graphs") / "product.onnx"
    path.write_bytes(onnx.parser.parse_model(PRODUCT).SerializeToString())
    return Graph(path, SessionSettings(threads=1))


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


CHANGES = st.lists(st.sampled_from(["in place", "replaced", "turned", "wider", "as it was"]), min_size=1, max_size=6)


@given(CHANGES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_runs_read_what_is_fed_now(product: Graph, changes: list[str]):
    """Arrays that stay are changed in place, replaced, of another rank, or not in C order, of which a copy is read."""
    places = Places({"y": np.zeros((2, 3), np.float32)}, STAYING)
    feeds = {"x": numbers(2, 4), "a": numbers(4, 2), "b": numbers(2, 3)}
    for change in changes:
        if change == "in place":
            feeds["a"][...] += 1
        elif change == "replaced":
            feeds = {**feeds, "b": feeds["b"] + 1}
        elif change == "turned":
            feeds = {**feeds, "a": np.asfortranarray(feeds["a"])}
        elif change == "wider":
            feeds = {**feeds, "a": np.tile(feeds["a"], (1, 2)), "b": np.tile(feeds["b"], (2, 1))}
        feeds["x"] = feeds["x"] * np.float32(0.5)
        product.run_into(feeds, places)
        assert places.outputs["y"].tobytes() == product.run(feeds)["y"].tobytes()


def test_an_input_that_is_missing_is_not_taken_from_the_run_before(product: Graph):
    places = Places({"y": np.zeros((2, 3), np.float32)}, STAYING)
    feeds = {"x": numbers(2, 4), "a": numbers(4, 2), "b": numbers(2, 3)}
    product.run_into(feeds, places)
    for name in feeds:
        with pytest.raises(BundleError):
            product.run_into({n: x for n, x in feeds.items() if n != name}, places)
        product.run_into(feeds, places)


def test_a_run_after_one_that_failed_reads_its_own_feeds(product: Graph):
    places = Places({"y": np.zeros((2, 3), np.float32)}, STAYING)
    feeds = {"x": numbers(2, 4), "a": numbers(4, 2), "b": numbers(2, 3)}
    with pytest.raises(BundleError):
        product.run_into({**feeds, "b": numbers(5, 3)}, places)
    product.run_into(feeds, places)
    assert places.outputs["y"].tobytes() == product.run(feeds)["y"].tobytes()


def test_inputs_that_do_not_stay_are_let_go(product: Graph):
    """Pictures of the last run are not held beside those of the next; nor are places that nobody has any more."""

    class Watched(np.ndarray):
        """An array that weak references may refer to."""

    places = Places({"y": np.zeros((2, 3), np.float32)}, STAYING)
    feeds = {"x": numbers(2, 4).view(Watched), "a": numbers(4, 2), "b": numbers(2, 3)}
    passing, staying = weakref.ref(feeds["x"]), weakref.ref(places)
    product.run_into(feeds, places)
    del feeds
    gc.collect()
    assert passing() is None
    del places
    gc.collect()
    assert staying() is None and not len(product._bound)  # pyright: ignore[reportPrivateUsage]
