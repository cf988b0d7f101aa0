"""Only what the loss reads is computed: loss and gradients of every task are those of the whole, with fewer rows."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora_tools.certify.double import bring_to_float64
from edgelora_tools.composites import recognise_composites
from edgelora_tools.graphs import prune
from edgelora_tools.insertion import find_sites
from edgelora_tools.losses import LOSSES
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.normalize import normalize
from edgelora_tools.options import ConvertOptions
from edgelora_tools.reference import evaluator
from edgelora_tools.runner import open_session
from edgelora_tools.training_graphs import training_graph
from tests import families

CLASSES, RANK, WIDTH = 3, 2, 32
HIDDEN = "last_hidden_state"
CASES = [
    (task, pooling, loss.name)
    for task in ("sequence-classification", "token-classification", "regression", "sentence-embedding")
    for pooling in (("mean",) if task == "token-classification" else ("mean", "cls"))
    for loss in LOSSES[task]
]


@pytest.fixture(scope="module")
def model():
    """A two-layer BERT in the normal form, its shapes measured."""
    found = normalize(families.source("minilm").model.clone())
    measure_shapes(found)
    recognise_composites(found)
    return found


@pytest.fixture(scope="module")
def graphs(model):
    """graphs(task, pooling, loss, dropout): the training graph of the whole, and that of what is read."""

    @functools.cache
    def made(task, pooling, loss, dropout):
        pair = []
        for sliced in (False, True):
            options = ConvertOptions(task=task, pooling=pooling, output=HIDDEN, unpad=sliced)
            base = prune(model, options)
            points = [site.point for site in find_sites(base)]
            of = next(one for one in LOSSES[task] if one.name == loss)
            pair.append(training_graph(base, points, options, of, dropout, sliced, "train.onnx").model)
        return tuple(pair)

    return made


@pytest.fixture(scope="module")
def sessions(graphs):
    """The same in ONNX Runtime."""
    opened = []

    @functools.cache
    def made(*case):
        opened.extend(contexts := [open_session(graph) for graph in graphs(*case)])
        return [context.__enter__() for context in contexts]

    yield made
    for context in opened:
        context.__exit__(None, None, None)


def feeds_for(graph, mask, weight, seed=0):
    """Random values for every input of a training graph; `weight` `[batch, length]` is tokens' shares of the loss."""
    rng = np.random.default_rng(seed)
    rows, length = mask.shape
    names = {"batch": rows, "outputs": CLASSES, "pairs": rows, "": RANK}
    given = {
        "input_ids": rng.integers(0, 99, mask.shape),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
        "anchors": np.arange(rows),
        "positives": (np.arange(rows) + 1) % rows,
        "negatives": (np.arange(rows) + 2) % rows,
        "margin": np.asarray(0.7, np.float32),
        "inverse_temperature": np.asarray(5.0, np.float32),
    }
    feeds = {}
    for x in graph.graph.inputs:
        name, sizes = str(x.name), [d if isinstance(d, int) else str(d.value) for d in x.shape]
        tokens = len(sizes) > 1 and isinstance(sizes[1], str) and sizes[1] not in names and not name.endswith("lora_A")
        shape = [d if isinstance(d, int) else names.get(d, RANK) for d in sizes]
        if tokens:
            shape[1] = length
        if name in given:
            feeds[name] = given[name]
        elif name == "labels":
            feeds[name] = rng.integers(0, CLASSES, shape)
        elif name.endswith(".mask"):
            feeds[name] = (rng.random(shape) < 0.7).astype(np.uint8)
        else:
            feeds[name] = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        if tokens and name == "loss_weight":
            feeds[name] = weight.astype(np.float32)
        elif tokens and name.startswith("cotangent."):
            feeds[name] *= weight[..., None].astype(np.float32)
    return feeds


def run(session, feeds):
    names = [y.name for y in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))


def assert_equal(got, wanted, tolerance):
    assert got.keys() == wanted.keys()
    for name, expected in wanted.items():
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=tolerance * scale, err_msg=name)


def padded_to_the_right(lengths):
    return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


def labelled(mask, seed=0):
    """Weights of some tokens, of padding's too; none of the second sample."""
    rng = np.random.default_rng(seed)
    weight = rng.random(mask.shape) * (rng.random(mask.shape) < 0.3)
    weight[1:2] = 0
    return weight


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize(("task", "pooling", "loss"), CASES, ids=["-".join(case) for case in CASES])
def test_loss_and_gradients_are_those_of_the_whole(task, pooling, loss, dropout, graphs, sessions):
    case = task, pooling, loss, dropout
    for lengths in ([3, 23, 1, 9], [7]):
        mask = padded_to_the_right(lengths)
        feeds = feeds_for(graphs(*case)[0], mask, labelled(mask))
        whole, read = (run(session, feeds) for session in sessions(*case))
        slopes = [np.abs(y).max() for name, y in whole.items() if name.endswith("lora_B")]
        assert max(slopes) > 1e-3 or len(lengths) == 1, "nothing to see"
        assert_equal(read, whole, 2e-5)


@pytest.mark.parametrize(("task", "pooling"), [("token-classification", "mean"), ("sequence-classification", "cls")])
def test_in_float64_they_are_equal(task, pooling, graphs):
    mask = padded_to_the_right([3, 11, 6])
    results = []
    for graph in graphs(task, pooling, "cross-entropy", True):
        double = graph.clone()
        bring_to_float64(double)
        feeds = feeds_for(graph, mask, labelled(mask))
        feeds = {n: x.astype(np.float64) if x.dtype == np.float32 else x for n, x in feeds.items()}
        names = [str(y.name) for y in double.graph.outputs]
        results.append(dict(zip(names, map(np.asarray, evaluator(double).run(names, feeds)), strict=True)))
    assert_equal(results[1], results[0], 1e-12)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_mask_and_any_labels(graphs, sessions, data):
    """Masks with holes and of nothing, on either side; labels of padding; no labels at all."""
    rows, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    bits = st.lists(st.booleans(), min_size=rows * length, max_size=rows * length)
    mask = np.array(data.draw(bits)).reshape(rows, length).astype(np.int64)
    weight = np.array(data.draw(bits)).reshape(rows, length) * np.linspace(0.1, 1, length)
    case = "token-classification", "mean", data.draw(st.sampled_from(["cross-entropy", "cotangent"])), True
    feeds = feeds_for(graphs(*case)[0], mask, weight, data.draw(st.integers(0, 99)))
    whole, read = (run(session, feeds) for session in sessions(*case))
    assert_equal(read, whole, 5e-5)


def test_without_any_label_the_loss_is_nothing(graphs, sessions):
    case = "token-classification", "mean", "cross-entropy", False
    mask = padded_to_the_right([4, 9])
    for session in sessions(*case):
        for name, y in run(session, feeds_for(graphs(*case)[0], mask, np.zeros(mask.shape))).items():
            assert (y == 0).all(), name


def test_tokens_of_padding_that_the_loss_does_not_read_say_nothing(graphs, sessions):
    case = "token-classification", "mean", "cross-entropy", False
    mask = padded_to_the_right([4, 9, 2])
    feeds = feeds_for(graphs(*case)[1], mask, labelled(mask) * mask)
    other = feeds | {"input_ids": np.where(mask == 1, feeds["input_ids"], 7)}
    graph = sessions(*case)[1]
    for name, y in run(graph, feeds).items():
        np.testing.assert_array_equal(run(graph, other)[name], y, err_msg=name)


@pytest.mark.parametrize(
    ("task", "pooling", "read"), [("token-classification", "mean", 4), ("sequence-classification", "cls", 3)]
)
def test_rows_of_products(task, pooling, read, graphs):
    """Rows of every product with a frozen weight in the forward pass, by layer."""
    mask = padded_to_the_right([3, 11, 6])
    weight = np.zeros(mask.shape)
    weight[[0, 1, 1, 2], [1, 0, 10, 5]] = 1
    whole, sliced = (products(g, feeds_for(g, mask, weight)) for g in graphs(task, pooling, "cross-entropy", False))
    assert set(whole.values()) == {mask.size}
    tokens = int(mask.sum())
    of_keys = {name for name in sliced if name.endswith(("key", "value"))}
    of_last = {name for name in sliced if "layer.1" in name} - of_keys
    assert len(of_last) >= 3
    assert {name: rows for name, rows in sliced.items() if name in of_last} == dict.fromkeys(of_last, read)
    assert {rows for name, rows in sliced.items() if name not in of_last} == {tokens}


def products(graph, feeds):
    """How many rows the adapter of each point is given."""
    wanted = {}
    for node in graph.graph:
        for x in node.inputs[1:2]:
            if x is not None and x.is_graph_input() and str(x.name).endswith(".lora_A") and node.op_type == "MatMul":
                wanted[str(x.name).removesuffix(".lora_A")] = node.outputs[0]
    assert wanted
    probe = graph.clone()
    names = [str(y.name) for y in wanted.values()]
    by_name = {y.name: y for node in probe.graph for y in node.outputs}
    probe.graph.outputs[:] = [by_name[name] for name in names]
    shapes = [np.asarray(y).shape for y in evaluator(probe).run(names, feeds)]
    return {point: int(np.prod(shape[:-1])) for point, shape in zip(wanted, shapes, strict=True)}
