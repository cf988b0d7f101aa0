"""Padding left out of the training graphs: same loss and gradients, and nothing is left out where it would be seen."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgelora.bundle import Bundle
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.passes.padding import ignores_padding
from edgelora_tools.passes.rows import gather_rows
from tests import families

CLASSES, RANK = 3, 2
TASKS = [("sequence-classification", "mean"), ("sequence-classification", "cls"), ("token-classification", "mean")]


def bundles(family, folder, attention="eager", exporter="dynamo", task="sequence-classification", pooling="mean"):
    """The same model with padding in its training graphs and without."""
    source = families.source(family, exporter, attention)
    made = []
    for unpad in (False, True):
        options = ConvertOptions(
            task=task, pooling=pooling, output="last_hidden_state", unpad=unpad, target_modules="all-linear"
        )
        convert(source, folder / f"{unpad}.edgelora", options)
        made.append(Bundle.open(folder / f"{unpad}.edgelora"))
    return made


def feeds_for(bundle, inputs, mask, rng):
    manifest = bundle.manifest
    given = inputs | {"attention_mask": mask}
    feeds = {spec.name: given[spec.name] for spec in manifest.inputs}
    for point in manifest.points:
        for name, shape in ((point.input_a, point.shape_a(RANK)), (point.input_b, point.shape_b(RANK))):
            feeds[name] = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
    head = manifest.head
    feeds[head.weight] = rng.standard_normal((CLASSES, head.features)).astype(np.float32)
    feeds[head.bias] = rng.standard_normal(CLASSES).astype(np.float32)
    per = mask.shape if head.per == "token" else mask.shape[:1]
    feeds["labels"] = rng.integers(0, CLASSES, per)
    weight = np.full(per, 1 / mask.shape[0], np.float32)
    feeds["loss_weight"] = weight * mask.astype(np.float32) if head.per == "token" else weight
    return feeds


def compare(padded, unpadded, inputs, mask):
    feeds = feeds_for(padded, inputs, mask, np.random.default_rng(5))
    one, other = (b.graph("train-cross-entropy.onnx").run(feeds) for b in (padded, unpadded))
    assert one.keys() == other.keys()
    for name, expected in one.items():
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(other[name], expected, rtol=0, atol=2e-5 * scale, err_msg=name)


@pytest.mark.parametrize(("task", "pooling"), TASKS)
def test_loss_and_gradients_are_those_with_padding(task, pooling, tmp_path):
    padded, unpadded = bundles("bert", tmp_path, task=task, pooling=pooling)
    inputs = families.sample("bert", rows=4, length=9, seed=3)
    compare(padded, unpadded, inputs, inputs["attention_mask"])


@pytest.mark.parametrize(
    ("family", "exporter"), [("distilbert", "dynamo"), ("llama", "dynamo"), ("gpt2", "torchscript")]
)
def test_other_families(family, exporter, tmp_path):
    padded, unpadded = bundles(family, tmp_path, exporter=exporter)
    inputs = families.sample(family, rows=4, length=9, seed=3)
    compare(padded, unpadded, inputs, inputs["attention_mask"])


def test_scaled_dot_product_attention(tmp_path):
    padded, unpadded = bundles("bert", tmp_path, attention="sdpa")
    inputs = families.sample("bert", rows=4, length=9, seed=3)
    compare(padded, unpadded, inputs, inputs["attention_mask"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return bundles("bert", tmp_path_factory.mktemp("pair"))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), left=st.booleans(), seed=st.integers(0, 99))
def test_any_lengths_and_either_side(pair, lengths, left, seed):
    width = max(lengths)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    mask = mask[:, ::-1].copy() if left else mask
    rng = np.random.default_rng(seed)
    inputs = {"input_ids": rng.integers(0, 99, mask.shape), "token_type_ids": np.zeros_like(mask)}
    compare(pair[0], pair[1], inputs, mask)


def test_an_unpadded_graph_has_the_kept_tokens_in_its_products(pair):
    graphs = [onnx.load(str(b.path / "train-cross-entropy.onnx"), load_external_data=False) for b in pair]
    assert [any(node.op_type == "NonZero" for node in graph.graph.node) for graph in graphs] == [False, True]


def test_what_padding_says_is_not_read(pair):
    rng, mask = np.random.default_rng(0), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    ids = rng.integers(0, 99, mask.shape)
    inputs = {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
    feeds = feeds_for(pair[1], inputs, mask, np.random.default_rng(5))
    graph = pair[1].graph("train-cross-entropy.onnx")
    other = graph.run(feeds | {"input_ids": np.where(mask == 1, ids, 7)})
    for name, expected in graph.run(feeds).items():
        np.testing.assert_array_equal(other[name], expected, err_msg=name)


def mixing(how):
    """Tokens of width 4 that are mixed along the length by `how`; a mask that it may or may not look at."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="mixing")
    builder = GraphBuilder(graph)
    op = builder.op
    ids = builder.input("input_ids", ir.DataType.INT64, ["batch", "length"])
    mask = builder.input("attention_mask", ir.DataType.INT64, ["batch", "length"])
    rng = np.random.default_rng(0)
    table = builder.initializer(ir.tensor(rng.standard_normal((9, 4)).astype(np.float32), name="table"))
    weight = builder.initializer(ir.tensor(rng.standard_normal((4, 4)).astype(np.float32), name="weight"))
    x = op.Tanh(op.MatMul(op.Gather(table, ids), weight))
    keep = op.Unsqueeze(op.Cast(mask, to=ir.DataType.FLOAT), [-1])
    y = op.Tanh(op.Add(x, how(op, x, keep)))
    y.name = "hidden"
    builder.add_output(y, "hidden")
    model = ir.Model(graph, ir_version=10)
    return model, measure_shapes(model)


def masked_mean(op, x, keep):
    return op.Div(op.ReduceSum(op.Mul(x, keep), [1], keepdims=1), op.ReduceSum(keep, [1], keepdims=1))


def plain_mean(op, x, keep):
    return op.Mul(op.ReduceMean(x, [1], keepdims=1), op.ReduceMax(keep, [1], keepdims=1))


def windows(op, x, keep):
    """Only lengths that come in windows of 32 tokens."""
    return op.Reshape(op.Reshape(op.Add(masked_mean(op, x, keep), x), [-1, 32, 4]), op.Shape(x))


@pytest.mark.parametrize(("how", "blind"), [(masked_mean, True), (plain_mean, False), (windows, True)])
def test_a_model_that_looks_at_padding_is_found_out(how, blind):
    model, sizes = mixing(how)
    assert ignores_padding(model, sizes[0]) is blind


def test_rows_of_all_tokens_change_nothing_but_shapes():
    model, _ = mixing(plain_mean)
    before = model.clone()
    assert gather_rows(model, kept=False)
    assert any(node.op_type == "Rows" for node in model.graph)
    assert [tuple(map(str, dims(y))) for y in model.graph.outputs] == [("batch", "length", "4")]
    assert [y.name for y in model.graph.outputs] == [y.name for y in before.graph.outputs]
