"""Causal attention in blocks: the numbers of the whole square, forward and backward, and only where the mask is so."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.certify.double import bring_to_float64
from edgelora_tools.composites import recognise_composites
from edgelora_tools.gradients.shapes import shaped
from edgelora_tools.graphs import LOWERED
from edgelora_tools.lowering import DOMAIN, lower_nodes
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.normalize import normalize
from edgelora_tools.passes.causal_blocks import causal_blocks
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.passes.value_sizes import ValueSizes
from edgelora_tools.reference import evaluator
from edgelora_tools.runner import open_session
from edgelora_tools.sources.causal_lm import decoder_source
from tests.language_models import EOS, build

WIDTH, SIZE = 4, 6
LEAST = float(np.finfo(np.float32).min)
GRADIENTS = ["dq", "dk", "dv"]


def hidden_of(op, segments, window=None, behind="Greater"):
    """Which keys a query does not see, `[batch, length, length]`, as sources/cached_module.py writes it."""
    sizes = ["batch", "length", "length"]
    bools = ir.Value(type=ir.TensorType(ir.DataType.BOOL))
    slots = op.Range(0, op.Squeeze(op.Shape(segments, start=1, end=2), [0]), 1)
    slots.shape, slots.type = ir.Shape(["length"]), ir.TensorType(ir.DataType.INT64)
    own = op.Unsqueeze(slots, [1])
    other = op.Not(op.Equal(op.Unsqueeze(segments, [1]), op.Unsqueeze(segments, [2])))
    later = op.Less(own, slots) if behind == "Less" else getattr(op, behind)(slots, own)
    hidden = op.Or(shaped(other, sizes, bools), shaped(later, sizes[1:], bools))
    if window is not None:
        hidden = op.Or(op.LessOrEqual(slots, op.Sub(own, window)), shaped(hidden, sizes, bools))
    return shaped(hidden, sizes, bools)


def attention(heads=4, fewer=2, window=None, least=LEAST, behind="Greater", safe=False, scale="right", further=None):
    """Y of Q `[batch, heads, length, width]`, K and V of `fewer` heads and segments, as exporters write it."""
    built = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="attention"))
    op = built.op
    q, k, v = (
        built.input(name, ir.DataType.FLOAT, ["batch", count, "length", width])
        for name, count, width in (("q", heads, WIDTH), ("k", fewer, WIDTH), ("v", fewer, SIZE))
    )
    segments = built.input("segments", ir.DataType.INT64, ["batch", "length"])
    hidden = hidden_of(op, segments, window, behind)
    if further is not None:
        hidden = op.Or(hidden, further(op, segments))
    triple = ["batch", "length", "length"]
    real = shaped(op.Cast(hidden, to=ir.DataType.FLOAT), triple, q)
    mask = shaped(op.Unsqueeze(shaped(op.Mul(real, least), triple, q), [1]), ["batch", 1, "length", "length"], q)
    keys, values = (_repeated(op, x, heads, fewer) for x in (k, v))
    turned = shaped(op.Transpose(keys, perm=[0, 1, 3, 2]), ["batch", heads, WIDTH, "length"], q)
    square = ["batch", heads, "length", "length"]
    scores = shaped(op.MatMul(q, turned), square, q)
    if scale is not None:
        scores = shaped(op.Mul(scores, 0.3) if scale == "right" else op.Mul(0.3, scores), square, q)
    p = shaped(op.Softmax(shaped(op.Add(scores, mask), square, q), axis=-1), square, q)
    if safe:
        p = shaped(op.Where(op.IsNaN(p), 0.0, p), square, q)
    y = shaped(op.MatMul(p, values), ["batch", heads, "length", SIZE], q)
    y.name = "y"
    built.add_output(y, "y")
    made = ir.Model(built.graph, ir_version=10)
    recognise_composites(made, long_rows=True)
    return made


def _repeated(op, x, heads, fewer):
    if heads == fewer:
        return x
    batch, _, length, width = x.shape
    opened = shaped(op.Unsqueeze(x, [2]), [batch, fewer, 1, length, width], x)
    times = op.Concat([1, 1, heads // fewer, 1, 1], axis=0)
    wide = shaped(op.Expand(opened, times), [batch, fewer, heads // fewer, length, width], x)
    merged = op.Concat(op.Shape(x, start=0, end=1), [heads], op.Shape(x, start=2, end=4), axis=0)
    return shaped(op.Reshape(wide, merged, allowzero=1), [batch, heads, length, width], x)


def kinds(model):
    return Counter(node.op_type for node in model.graph if node.domain == DOMAIN)


def differentiated(model, blocks=None, measured=False):
    """With the gradients of Q, K and V for a cotangent `dy`; in blocks, or the whole square; `measured` has shapes."""
    if blocks is not None:
        causal_blocks(model, blocks)
        assert kinds(model) == {"CausalAttend": 1}
    op = GraphBuilder(free_names(model.graph)).op
    y, inputs = model.graph.outputs[0], list(model.graph.inputs[:3])
    dy = op.builder.input("dy", ir.DataType.FLOAT, list(y.shape))
    found = differentiate(op, list(model.graph), {y: dy}, inputs)
    for x in inputs:
        gradient = op.Identity(found[x])
        gradient.name = f"d{x.name}"
        model.graph.outputs.append(gradient)
    lower_nodes(model.graph, op, LOWERED)
    return model if measured else tidy(model)


def feeds_of(batch, heads, fewer, length, seed=0, kind: type[np.floating[Any]] = np.float32, segments=2):
    rng = np.random.default_rng(seed)
    sizes = {"q": (heads, WIDTH), "k": (fewer, WIDTH), "v": (fewer, SIZE), "dy": (heads, SIZE)}
    feeds = {n: rng.standard_normal((batch, h, length, w)).astype(kind) for n, (h, w) in sizes.items()}
    return feeds | {"segments": np.sort(rng.integers(1, 1 + segments, (batch, length)), axis=1)}


@functools.cache
def models(heads, fewer, window, safe, blocks):
    return differentiated(attention(heads, fewer, window, safe=safe), blocks)


def run(model, feeds):
    with open_session(model) as session:
        return [np.asarray(y) for y in session.run(["y", *GRADIENTS], feeds)]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), heads=st.sampled_from([(4, 2), (3, 1), (2, 2), (1, 1), (9, 3), (6, 3), (3, 3)]),
    length=st.integers(1, 19), blocks=st.integers(1, 6),
    window=st.sampled_from([None, 1, 3]), safe=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_blocks_compute_what_the_whole_square_does(batch, heads, length, blocks, window, safe, seed):
    many, fewer = heads
    feeds = feeds_of(batch, many, fewer, length, seed)
    wanted = run(models(many, fewer, window, safe, None), feeds)
    for got, whole in zip(run(models(many, fewer, window, safe, blocks), feeds), wanted, strict=True):
        assert got.shape == whole.shape
        np.testing.assert_allclose(got, whole, rtol=0, atol=2e-6 * max(1, np.abs(whole).max()))


def double(blocks, **options):
    model = differentiated(attention(**options), blocks)
    bring_to_float64(model)
    return evaluator(model)


@pytest.mark.parametrize(("heads", "fewer"), [(4, 2), (2, 2), (9, 3), (6, 3)])
@pytest.mark.parametrize("blocks", [2, 4])
def test_gradients_are_those_of_finite_differences_and_of_torch(heads, fewer, blocks):
    feeds = feeds_of(2, heads, fewer, 9, kind=np.float64)
    session = double(blocks, heads=heads, fewer=fewer)
    y, *gradients = (np.asarray(x) for x in session.run(["y", *GRADIENTS], feeds))
    q, k, v = (torch.tensor(feeds[name], requires_grad=True) for name in "qkv")
    own = torch.tensor(feeds["segments"])
    seen = (own[:, None, :] == own[:, :, None]).tril()[:, None]
    keys, values = (x.repeat_interleave(heads // fewer, 1) for x in (k, v))
    scores = (q @ keys.transpose(2, 3) * float(np.float32(0.3))).masked_fill(~seen, -torch.inf)
    made = scores.softmax(-1) @ values
    made.backward(torch.tensor(feeds["dy"]))
    np.testing.assert_allclose(y, made.detach().numpy(), rtol=1e-10, atol=1e-12)
    rng, step = np.random.default_rng(1), 1e-5
    for name, x, got in zip("qkv", (q, k, v), gradients, strict=True):
        assert x.grad is not None
        np.testing.assert_allclose(got, x.grad.numpy(), rtol=1e-10, atol=1e-12)
        along = rng.standard_normal(got.shape)
        ahead, back = (
            next(map(np.asarray, session.run(["y"], feeds | {name: feeds[name] + s * step * along}))) for s in (1, -1)
        )
        assert ((ahead - back) * feeds["dy"]).sum() / (2 * step) == pytest.approx((got * along).sum(), rel=1e-6)


@pytest.mark.parametrize(("blocks", "length", "share"), [(2, 16, 3 / 4), (4, 16, 5 / 8), (4, 3, 6 / 9)])
def test_scores_beyond_the_blocks_are_not_computed(blocks, length, share):
    model = differentiated(attention(), blocks)
    made = [node.outputs[0] for node in model.graph if node.op_type == "Softmax"]
    model.graph.outputs[:] = made
    with open_session(model) as session:
        sizes = [np.asarray(p).size for p in session.run(None, feeds_of(1, 4, 2, length))]
    assert sum(sizes) == share * 4 * length**2


@pytest.mark.parametrize(("heads", "fewer"), [(4, 2), (2, 2), (9, 3), (6, 3)])
def test_estimates_know_what_blocks_hold(heads, fewer):
    """Of every layer's probabilities, so that recomputation is weighed by what there is."""
    model = differentiated(attention(heads=heads, fewer=fewer), 4, measured=True)
    sizes = ValueSizes(model.graph, {"batch": 2, "length": 64})
    made = [node.outputs[0] for node in model.graph if node.op_type == "Softmax"]
    held = [reader.outputs[0] if reader.op_type == "Reshape" else p for p in made for reader, _ in list(p.uses())[:1]]
    assert sum(map(sizes.elements, held)) == 5 / 8 * 2 * heads * 64**2


def products_of(batch, heads, fewer, length, blocks):
    """How many products each MatMul is, forward and backward, from the first block on."""
    model = differentiated(attention(heads, fewer), blocks)
    made = [node.outputs[0] for node in model.graph if node.op_type == "MatMul"]
    model.graph.outputs[:] = made
    with open_session(model) as session:
        shapes = [np.asarray(y).shape for y in session.run(None, feeds_of(batch, heads, fewer, length))]
    return [int(np.prod(shape[:-2])) for shape in shapes]


@pytest.mark.parametrize(
    ("batch", "heads", "fewer", "length", "wanted"),
    [
        (1, 9, 3, 16, {6}), (1, 6, 3, 9, {6}),  # three heads of keys: two threads have as much to do
        (2, 9, 3, 16, {6}), (1, 9, 3, 9, {3, 6}),  # as many without; an odd number of rows, in the first block alone
        (1, 8, 4, 16, {4}), (1, 4, 1, 16, {1}), (1, 3, 3, 16, {3}), (3, 4, 2, 16, {6}),
    ],
    ids=str,
)  # fmt: skip
def test_two_threads_share_products_evenly(batch, heads, fewer, length, wanted):
    found = products_of(batch, heads, fewer, length, 4)
    assert len(found) == 4 * 6 and set(found) == wanted
    assert Counter(found)[3] in (0, 6, 24)


@pytest.mark.parametrize(
    ("heads", "fewer", "length", "wanted"),
    [(9, 3, 256, 2), (9, 3, 257, 4), (4, 2, 256, 4), (3, 3, 256, 4), (4, 1, 32, 4)],
    ids=str,
)
def test_short_texts_have_fewer_blocks_where_these_are_in_halves(heads, fewer, length, wanted):
    model = causal_blocks(attention(heads, fewer), length=length)
    (node,) = (node for node in model.graph if node.op_type == "CausalAttend")
    assert node.attributes.get_int("blocks") == wanted


def _ends_of_rows(op, segments):
    bools = ir.Value(type=ir.TensorType(ir.DataType.BOOL))
    return shaped(op.Equal(op.Unsqueeze(segments, [1]), 1), ["batch", 1, "length"], bools)


@pytest.mark.parametrize(
    "options",
    [
        {"behind": "Less"}, {"scale": "left"}, {"scale": None}, {"window": 1}, {"safe": True},
    ],
    ids=str,
)  # fmt: skip
def test_every_spelling_of_a_causal_mask_is_proven(options):
    model = attention(**options)
    assert kinds(causal_blocks(model)) == {"CausalAttend": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"behind": "GreaterOrEqual"},  # a query does not see itself
        {"behind": "LessOrEqual"}, {"least": -1e4}, {"least": -np.inf},  # 0 times that is no number
        {"window": 0}, {"window": -2},  # nor here
        {"further": _ends_of_rows},  # some keys are seen by nobody, and rows may be hidden whole
    ],
    ids=("behind-or-at", "before-or-at", "little", "infinite", "no-window", "negative-window", "ends-of-rows"),
)  # fmt: skip
def test_a_mask_that_is_not_proven_to_be_causal_stays(options):
    model = attention(**options)
    assert kinds(causal_blocks(model)) == {"Attend": 1}


def test_scores_that_something_else_reads_stay():
    model = attention()
    (node,) = (node for node in model.graph if node.op_type == "Attend")
    model.graph.outputs.append(node.outputs[1])
    assert kinds(causal_blocks(model)) == {"Attend": 1}


@pytest.mark.parametrize("kind", ["gpt2", "phi", "gemma2", "gemma3"])
def test_decoders_are_proven_but_those_that_cap_their_scores(kind):
    model = normalize(decoder_source(build(kind), kind, {}, {}, [EOS]).model.clone())
    measure_shapes(model)
    recognise_composites(model, long_rows=True)
    found = kinds(causal_blocks(model))
    assert (found["CausalAttend"], found["Attend"]) == ((0, 2) if kind == "gemma2" else (2, 0))
