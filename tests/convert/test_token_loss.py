"""The loss of a vocabulary in blocks of its tokens: torch's values and gradients, for every kind of head."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites.token_blocks import even_size
from edgelora_tools.composites.token_loss import OP_TYPE, TokenLoss
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.shapes import shaped
from edgelora_tools.graphs import LOWERED
from edgelora_tools.lowering import DOMAIN, lower_nodes
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.passes.value_sizes import ValueSizes
from edgelora_tools.reference import evaluator
from edgelora_tools.runner import open_session
from edgelora_tools.vocabulary import vocabulary_head

WIDTH, VOCABULARY = 6, 26
UNEVEN, SOME, ALL = 6, 2, VOCABULARY  # tokens of a block: five, the last of which is smaller, thirteen, or one
CAP, SCALE, COMMON = 3.0, 0.25, 50.0
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.standard_normal((VOCABULARY, WIDTH)), RNG.standard_normal(VOCABULARY)
CODES, STEPS = RNG.integers(-127, 128, (VOCABULARY, WIDTH)).astype(np.int8), RNG.uniform(0.001, 0.02, VOCABULARY)


def heads(dtype):
    """Emitters of logits `[rows, vocabulary]` from hidden states, by kind."""

    def constant(op, values):
        known = op.builder.graph.initializers
        return op.builder.initializer(ir.tensor(np.asarray(values, dtype), name=f"constant{len(known)}"))

    def of_codes(op, h, *bias):
        codes = op.builder.initializer(ir.tensor(CODES, name="codes"))
        further = [constant(op, values) for values in (STEPS, *bias)]
        logits = op.builder.opset(DOMAIN, 1).VocabularyProduct(h, codes, *further)
        return shaped(logits, ["rows", VOCABULARY], h)

    def tied(op, h):
        return op.Gemm(h, constant(op, WEIGHT), transB=1)

    def capped(op, h):
        return op.Mul(op.Tanh(op.Div(tied(op, h), constant(op, CAP))), constant(op, CAP))

    return {
        "tied": tied,
        "transposed": lambda op, h: op.MatMul(h, op.Transpose(constant(op, WEIGHT), perm=[1, 0])),
        "untied": lambda op, h: op.MatMul(h, constant(op, WEIGHT.T)),
        "bias": lambda op, h: op.Gemm(h, constant(op, WEIGHT.T), constant(op, BIAS)),
        "bias added": lambda op, h: op.Add(op.MatMul(h, constant(op, WEIGHT.T)), constant(op, BIAS)),
        "capped": capped,
        "scaled": lambda op, h: op.Mul(tied(op, h), constant(op, SCALE)),
        "alike": lambda op, h: op.Gemm(h, constant(op, WEIGHT + COMMON), transB=1),
        "codes": of_codes,
        "codes, bias": lambda op, h: of_codes(op, h, BIAS),
        "codes, capped": lambda op, h: op.Mul(op.Tanh(op.Div(of_codes(op, h), constant(op, CAP))), constant(op, CAP)),
        "divided": lambda op, h: op.Div(tied(op, h), constant(op, 1 / SCALE)),
    }


def torch_logits(kind, h):
    weight = CODES * STEPS[:, None] if kind.startswith("codes") else WEIGHT + COMMON * (kind == "alike")
    z = h @ torch.tensor(weight).T.to(h)
    if "bias" in kind:
        z = z + torch.tensor(BIAS).to(h)
    return torch.tanh(z / CAP) * CAP if "capped" in kind else z * SCALE if kind in ("scaled", "divided") else z


@functools.cache
def graph(kind, dtype, most=SOME, integers=False):
    """What `lowered` makes, as a bundle has it."""
    return tidy(lowered(kind, dtype, most, integers))


def lowered(kind, dtype, most, integers=False):
    """Losses and Σ w·n's gradient of the hidden states: inputs h, labels, weight. Blocks have `most` tokens at most."""
    real = ir.DataType.from_numpy(np.dtype(dtype))
    built = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 21, DOMAIN: 1}, name="loss"))
    op = built.op
    h, labels = built.input("h", real, ["rows", WIDTH]), built.input("labels", ir.DataType.INT64, ["rows"])
    weight = built.input("weight", real, ["rows"])
    head = vocabulary_head(shaped(heads(dtype)[kind](op, h), ["rows", VOCABULARY], h))
    assert head is not None and head.hidden is h
    losses = head.losses(op, h, labels)
    model = ir.Model(built.graph, ir_version=10)
    op = GraphBuilder(free_names(model.graph)).op
    (gradient,) = differentiate(op, list(model.graph), {losses: weight}, [h]).values()
    for name, value in (("losses", losses), ("gradient", gradient)):
        value.name = name
        model.graph.outputs.append(value)
    lower_nodes(model.graph, op, LOWERED | {OP_TYPE: TokenLoss(most, most if integers else None)})
    return model


def feeds_for(rows, dtype, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(rows) * (rng.random(rows) < 0.7)  # some zeros, and negative ones
    return {
        "h": rng.standard_normal((rows, WIDTH)).astype(dtype),
        "labels": rng.integers(0, VOCABULARY, rows),
        "weight": weight.astype(dtype),
    }


def by_torch(kind, feeds):
    h = torch.tensor(feeds["h"], dtype=torch.float64, requires_grad=True)
    losses = torch.nn.functional.cross_entropy(torch_logits(kind, h), torch.tensor(feeds["labels"]), reduction="none")
    (losses * torch.tensor(feeds["weight"])).sum().backward()
    assert h.grad is not None
    return losses.detach().numpy(), h.grad.numpy()


def run(model, names, feeds):
    made = model.run(names, feeds)
    assert isinstance(made, list)
    return [np.asarray(y) for y in made]


@pytest.mark.parametrize("most", [1, UNEVEN, SOME, ALL])
@pytest.mark.parametrize("kind", heads(np.float64))
def test_value_and_gradient_are_torchs(kind, most):
    feeds = feeds_for(65, np.float64)
    made = run(evaluator(graph(kind, np.float64, most)), ["losses", "gradient"], feeds)
    for got, wanted in zip(made, by_torch(kind, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", heads(np.float64))
def test_the_gradient_is_that_of_finite_differences(kind):
    feeds, step = feeds_for(9, np.float64, seed=1), 1e-5
    model = evaluator(graph(kind, np.float64))
    direction = np.random.default_rng(2).standard_normal(feeds["h"].shape)
    ends = [
        run(model, ["losses"], feeds | {"h": feeds["h"] + s * step * direction})[0] @ feeds["weight"] for s in (1, -1)
    ]
    along = np.sum(run(model, ["gradient"], feeds)[0] * direction)
    assert along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-8)


@pytest.mark.parametrize("kind", ["tied", "untied", "capped", "bias", "codes", "codes, bias"])
def test_onnx_runtime_computes_the_same(kind):
    with open_session(graph(kind, np.float32)) as session:
        for rows in (0, 1, 65):
            feeds = feeds_for(rows, np.float32)
            got = run(session, ["losses", "gradient"], feeds)
            for mine, wanted in zip(got, by_torch(kind, feeds), strict=True):
                assert np.shape(mine) == wanted.shape
                np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most", [1, UNEVEN, SOME, ALL])
@pytest.mark.parametrize("kind", ["codes", "codes, bias"])
def test_in_integers_losses_and_gradients_are_nearly_the_same(kind, most):
    """Hidden states and shares of tokens have two digits."""
    model = graph(kind, np.float32, most, integers=True)
    assert {"Gemm", "MatMul"}.isdisjoint(node.op_type for node in _body(model))
    with open_session(model) as session:
        for rows in (0, 1, 65):
            feeds = feeds_for(rows, np.float32)
            losses, gradient = run(session, ["losses", "gradient"], feeds)
            wanted = by_torch(kind, feeds)
            np.testing.assert_allclose(losses, wanted[0], rtol=1e-4, atol=1e-4)
            assert gradient.shape == wanted[1].shape
            lost = STEPS.max() / 255 / 254 / 2 * np.abs(CODES).sum(0) * np.abs(feeds["weight"])[:, None]
            assert (np.abs(gradient - wanted[1]) <= lost + 1e-3 * np.abs(wanted[1]) + 1e-5).all()


def test_in_integers_what_is_behind_the_codes_keeps_the_head_real():
    assert any(node.op_type == "Gemm" for node in _body(graph("codes, capped", np.float32, SOME, integers=True)))
    assert any(node.op_type == "Gemm" for node in _body(graph("tied", np.float32, SOME, integers=True)))


def _body(model):
    return _walk(model).attributes["body"].as_graph()


def _walk(model):
    (node,) = (node for node in model.graph if node.op_type in ("Loop", "Scan"))
    return node


def test_far_apart_logits_are_exact():
    """The likeliest token's loss may be almost none, and another's hundreds: neither is lost to rounding."""
    feeds = feeds_for(4, np.float32)
    feeds["h"] *= 100
    with open_session(graph("tied", np.float32)) as session:
        losses, gradient = run(session, ["losses", "gradient"], feeds)
    wanted = by_torch("tied", feeds)
    assert wanted[0].max() > 200
    np.testing.assert_allclose(losses, wanted[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("most", [1, SOME])
def test_what_tokens_have_in_common_leaves_no_rounding(most):
    """Their vectors differ by a fiftieth of themselves: shares of blocks that add up to one but for rounding show."""
    feeds = feeds_for(65, np.float32)
    feeds["h"] = np.abs(feeds["h"]) / 2
    with open_session(graph("alike", np.float32, most)) as session:
        (gradient,) = run(session, ["gradient"], feeds)
    np.testing.assert_allclose(gradient, by_torch("alike", feeds)[1], atol=1e-4)


@pytest.mark.parametrize("most", [1, SOME, ALL])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_the_work_of_all_blocks_is_counted(kind, most):
    """Two products of the whole vocabulary, and not those of one round."""
    found = lowered(kind, np.float32, most)
    walk, body = _walk(found), _body(found)
    sizes, rounds = ValueSizes(found.graph, {"rows": 65}), VOCABULARY // most
    products = [sizes.operations(node) for node in body if node.op_type in ("Gemm", "MatMul")]
    assert rounds * sum(products) == 2 * 65 * WIDTH * VOCABULARY
    assert sizes.operations(walk) == rounds * sum(map(sizes.operations, body))


@pytest.mark.parametrize(
    ("kind", "most", "walked"),
    [("tied", SOME, "Scan"), ("codes, bias", SOME, "Scan"), ("tied", UNEVEN, "Loop"), ("untied", SOME, "Loop")],
)
def test_even_blocks_of_rows_are_not_copied(kind, most, walked):
    """Nor is the matrix before, where a runtime works out what is constant."""

    def frozen(x):
        return x.is_initializer()

    found = graph(kind, np.float32, most)
    assert _walk(found).op_type == walked
    assert any(node.op_type == "Slice" for node in _body(found)) == (walked == "Loop")
    if walked == "Scan":
        shapes = [
            shape for node in found.graph if node.op_type == "Reshape" for x, shape in [operands(node)] if frozen(x)
        ]
        assert len(shapes) == 1 + (2 if "bias" in kind else 0)
        assert not any(map(frozen, shapes))


@pytest.mark.parametrize(
    ("columns", "size"), [(49152, 1024), (151936, 1187), (128256, 1002), (50257, 1733), (512, 512), (50261, None)]
)
def test_an_even_block_is_the_nearest_that_divides_the_vocabulary(columns, size):
    assert even_size(columns, 1024) == size


def test_a_head_that_mixes_tokens_or_depends_on_an_input_is_none():
    built = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="loss"))
    op = built.op
    h = built.input("h", ir.DataType.FLOAT, ["batch", "sequence", WIDTH])
    w = built.input("w", ir.DataType.FLOAT, [WIDTH, VOCABULARY])
    fixed = built.initializer(ir.tensor(WEIGHT.T.astype(np.float32), name="fixed"))
    sizes = ["batch", "sequence", VOCABULARY]
    assert vocabulary_head(h) is None
    assert vocabulary_head(shaped(op.MatMul(h, w), sizes, h)) is None
    assert vocabulary_head(shaped(op.CumSum(op.MatMul(h, fixed), op.Constant(value_int=1)), sizes, h)) is None
    plain = shaped(op.MatMul(h, fixed), sizes, h)
    assert vocabulary_head(plain) is not None
    adapted = shaped(op.Add(plain, shaped(op.MatMul(h, w), sizes, h)), sizes, h)
    assert vocabulary_head(adapted) is None
    along = shaped(op.LogSoftmax(plain, axis=-1), sizes, h)  # a block of the vocabulary has another sum
    assert vocabulary_head(along) is None
