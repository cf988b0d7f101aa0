"""Passes of the training graph alone keep loss and gradients: adapters of one input, slopes of GELU, numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.errors import EdgeLoraError
from edgelora_tools import training_graphs
from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites import recognise_composites
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.graphs import LOWERED, prune
from edgelora_tools.insertion import find_sites
from edgelora_tools.losses import LOSSES
from edgelora_tools.lowering import DOMAIN, lower_nodes
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.normalize import normalize
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.add_in_product import add_in_product, biases
from edgelora_tools.passes.gelu_slopes import keep_slopes
from edgelora_tools.passes.scales import scale_products
from edgelora_tools.passes.share_inputs import share_inputs
from edgelora_tools.recipes import fetch, load_recipe
from edgelora_tools.reference import evaluator
from edgelora_tools.runner import open_session
from edgelora_tools.sources import open_source
from edgelora_tools.training_graphs import training_graph
from tests.convert.bundles import assert_checked, to_bundle
from tests.convert.networks import Net

ROWS, WIDTH, OUT = 5, 4, 3
STEP = 1e-6


class Small:
    """A graph in float64 with its backward pass; `numbers` are its inputs' values and those of its cotangents."""

    def __init__(self) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="small")
        self.builder = GraphBuilder(self.graph)
        self.op, self.rng = self.builder.op, np.random.default_rng(0)
        self.numbers: dict[str, np.ndarray] = {}

    def input(self, name, *shape):
        self.numbers[name] = self.rng.standard_normal([ROWS if n == "rows" else n for n in shape])
        return self.builder.input(name, ir.DataType.DOUBLE, list(shape))

    def weight(self, *shape):
        array = ir.tensor(self.rng.standard_normal(shape), name=f"w{len(self.graph.initializers)}")
        return self.builder.initializer(array)

    def shaped(self, y, *shape):
        y.shape, y.type = ir.Shape(shape), ir.TensorType(ir.DataType.DOUBLE)
        return y

    def adapter(self, x, name, rank):
        a, b = self.input(f"{name}.a", WIDTH, rank), self.input(f"{name}.b", rank, OUT)
        y, h = self.op.builder.opset(DOMAIN, 1).Lora(x, a, b, _outputs=2)
        return self.shaped(y, *dims(x)[:-1], OUT), self.shaped(h, *dims(x)[:-1], rank)

    def finish(self, outputs, wrt):
        """Outputs under their names, and the gradient of each of `wrt`."""
        cotangents = {}
        for i, y in enumerate(outputs):
            y.name = f"y{i}"
            self.builder.add_output(y, y.name)
            cotangents[y] = self.input(f"c{i}", *dims(y))
        grads = differentiate(self.op, list(self.graph), cotangents, wrt)
        for x in wrt:
            self.builder.add_output(self.op.Identity(grads[x]), f"grad.{x.name}")
        lower_nodes(self.graph, self.op, LOWERED)
        self.graph.opset_imports.pop(DOMAIN, None)
        model = ir.Model(self.graph, ir_version=10)
        common.TopologicalSortPass()(model)
        common.NameFixPass()(model)
        return model

    def run(self, model, numbers=None):
        run = evaluator(model)
        return dict(zip(run.output_names, map(np.asarray, run.run(None, numbers or self.numbers)), strict=True))


def check_slopes(small, model):
    """Every gradient along a random direction against central differences of the graph's own outputs."""
    found = small.run(model)

    def objective(numbers):
        made = small.run(model, numbers)
        return sum((made[f"y{i}"] * numbers[f"c{i}"]).sum() for i in range(9) if f"y{i}" in made)

    for name in [n.removeprefix("grad.") for n in found if n.startswith("grad.")]:
        v = small.rng.standard_normal(small.numbers[name].shape)
        ahead, behind = (objective(small.numbers | {name: small.numbers[name] + s * v}) for s in (STEP, -STEP))
        np.testing.assert_allclose((found[f"grad.{name}"] * v).sum(), (ahead - behind) / 2 / STEP, rtol=1e-5, atol=1e-7)


def two_adapters(ranks, read, joined, leading=("rows",)):
    """Adapters of one input, those of `read` alone read."""
    small = Small()
    op, x = small.op, small.input("x", *leading, WIDTH)
    seen = small.shaped(op.Tanh(x), *leading, WIDTH)
    made = [small.adapter(seen, f"p{i}", rank)[0] for i, rank in enumerate(ranks)]
    outputs = [small.shaped(op.Tanh(made[i]), *leading, OUT) for i in read]
    if joined:
        share_inputs(small.graph)
        assert [n.op_type for n in small.graph if n.domain == DOMAIN] == ["Lora"]
    tensors = [v for v in small.graph.inputs if v.name == "x" or int(str(v.name)[1]) in read]
    return small, small.finish(outputs, tensors)


@pytest.mark.parametrize("leading", [("rows",), (2, "rows")])
@pytest.mark.parametrize("read", [(0, 1, 2), (2, 0), (1,)])
@pytest.mark.parametrize("ranks", [(2, 3, 1), (0, 2, 1), (1, 1, 0)])
def test_adapters_of_one_input(ranks, read, leading):
    small, joined = two_adapters(ranks, read, True, leading)
    _, apart = two_adapters(ranks, read, False, leading)
    one, other = small.run(joined), small.run(apart)
    assert one.keys() == other.keys()
    for name, y in other.items():
        np.testing.assert_allclose(one[name], y, rtol=1e-10, atol=1e-12, err_msg=name)
    check_slopes(small, joined)


def feed_forward(adapted, keep):
    small = Small()
    op, x = small.op, small.input("x", "rows", WIDTH)
    up = small.shaped(op.MatMul(x, small.weight(WIDTH, OUT)), "rows", OUT)
    up = small.shaped(op.Add(up, small.weight(OUT)), "rows", OUT)
    if adapted:
        up = small.shaped(op.Add(up, small.adapter(x, "p0", 2)[0]), "rows", OUT)
    middle = small.shaped(op.Gelu(up), "rows", OUT)
    down = small.shaped(op.MatMul(middle, small.weight(OUT, WIDTH)), "rows", WIDTH)
    if keep:
        keep_slopes(small.graph)
        assert [n.op_type for n in small.graph if n.op_type.startswith("Gelu")] == ["GeluSlope"]
    model = small.finish([down], list(small.graph.inputs))
    add_in_product(model, biases)
    scale_products(model)
    return small, model


@pytest.mark.parametrize("adapted", [False, True])
def test_slopes_of_gelu(adapted):
    small, kept = feed_forward(adapted, True)
    _, plain = feed_forward(adapted, False)
    assert [n.op_type for n in kept.graph].count("Mul") == 4  # U∘U, U∘bell, U∘F, dY∘S: no number has a pass of its own
    one, other = small.run(kept), small.run(plain)
    for name, y in other.items():
        np.testing.assert_allclose(one[name], y, rtol=1e-6, atol=1e-7, err_msg=name)  # α is a float32
    check_slopes(small, kept)


def test_gelu_that_no_gradient_passes_stays():
    small = Small()
    x = small.input("x", "rows", WIDTH)
    up = small.shaped(small.op.MatMul(x, small.weight(WIDTH, OUT)), "rows", OUT)
    y = small.shaped(small.op.Gelu(up), "rows", OUT)
    keep_slopes(small.graph)
    small.builder.add_output(y if y.producer() else next(iter(small.graph)).outputs[0], "y0")
    lower_nodes(small.graph, small.op, LOWERED)
    assert "Gelu" in [n.op_type for n in small.graph]
    assert "Erf" not in [n.op_type for n in small.graph]


@st.composite
def products_and_numbers(draw):
    """Square products, sums, and multiplications by numbers, in any order; some values are outputs."""
    steps = draw(
        st.lists(st.sampled_from(["matmul", "gemm", "sum", "times", "number", "square"]), min_size=2, max_size=9)
    )
    picks = [draw(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))) for _ in steps]
    return steps, picks, draw(st.sets(st.integers(0, 8), min_size=1))


@settings(max_examples=60, deadline=None)
@given(products_and_numbers())
def test_numbers_become_the_products_own(drawn):
    steps, picks, outputs = drawn
    small = Small()
    op, shape = small.op, (ROWS, ROWS)
    values = [small.input("x", *shape), small.input("z", *shape)]
    for step, pick in zip(steps, picks, strict=True):
        a, b, c = (values[i % len(values)] for i in pick)
        number = op.Constant(value=ir.tensor(np.float64(pick[1] % 7 - 3.5)))
        made = {
            "matmul": lambda: op.MatMul(a, b),  # noqa: B023
            "gemm": lambda: op.Gemm(a, b, c, alpha=0.5, beta=2.0, transA=pick[0] % 2),  # noqa: B023
            "sum": lambda: op.Add(a, b),  # noqa: B023
            "times": lambda: op.Mul(a, b),  # noqa: B023
            "number": lambda: op.Mul(a, number) if pick[2] % 2 else op.Mul(number, a),  # noqa: B023
            "square": lambda: op.MatMul(a, a),  # noqa: B023
        }[step]()
        values.append(small.shaped(made, *shape))
    for i in sorted({o % len(steps) for o in outputs}):
        values[i + 2].name = f"y{i}"
        small.builder.add_output(values[i + 2], f"y{i}")
    model = ir.Model(small.graph, ir_version=10)
    common.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    before = small.run(model.clone())
    after = small.run(scale_products(model))
    for name, y in before.items():
        np.testing.assert_allclose(after[name], y, rtol=1e-5, atol=1e-5 * np.abs(y).max(), err_msg=name)


def test_a_number_before_or_behind_a_product_is_gone():
    small = Small()
    op, x = small.op, small.input("x", "rows", WIDTH)
    half = small.builder.initializer(ir.tensor(np.float64(0.5), name="half"))
    scaled = small.shaped(op.Mul(x, half), "rows", WIDTH)
    y = small.shaped(op.MatMul(scaled, small.weight(WIDTH, OUT)), "rows", OUT)
    z = op.Tanh(small.shaped(op.Mul(half, y), "rows", OUT))
    small.builder.add_output(z, "y0")
    model = ir.Model(small.graph, ir_version=10)
    before = small.run(model.clone())
    assert [n.op_type for n in scale_products(model).graph] == ["Gemm", "Tanh"]
    np.testing.assert_allclose(small.run(model)["y0"], before["y0"], rtol=1e-6)


@pytest.mark.parametrize("read_twice", [False, True])
def test_a_number_behind_a_sum_of_products_is_theirs(read_twice):
    small = Small()
    op, x = small.op, small.input("x", "rows", WIDTH)
    half = small.builder.initializer(ir.tensor(np.float64(0.5), name="half"))
    parts = [small.shaped(op.MatMul(x, small.weight(WIDTH, OUT)), "rows", OUT) for _ in range(3)]
    parts[1] = small.shaped(op.Gemm(x, small.weight(WIDTH, OUT), small.weight(OUT)), "rows", OUT)
    both = small.shaped(op.Add(parts[0], parts[1]), "rows", OUT)
    whole = small.shaped(op.Add(parts[2], both), "rows", OUT)
    small.builder.add_output(op.Tanh(small.shaped(op.Mul(whole, half), "rows", OUT)), "y0")
    if read_twice:
        small.builder.add_output(op.Tanh(parts[0]), "y1")
    model = ir.Model(small.graph, ir_version=10)
    before = small.run(model.clone())
    assert [n.op_type for n in scale_products(model).graph].count("Mul") == read_twice
    for name, y in small.run(model).items():
        np.testing.assert_allclose(y, before[name], rtol=1e-6)


@pytest.fixture(scope="module")
def minilm():
    """The pruned base of all-MiniLM-L6 and its points."""
    try:
        folder = fetch(load_recipe("minilm-l6"))
    except EdgeLoraError as error:
        pytest.skip(str(error))
    model = normalize(open_source(str(folder)).model)
    measure_shapes(model)
    recognise_composites(model)
    return prune(model, ConvertOptions())


def minilm_graph(base, padded, chosen):
    options = ConvertOptions(target_modules=chosen)
    points = [site.point for site in find_sites(base)]
    wanted = [p for p in points if any(p.id.endswith(t) for t in chosen)]
    (loss,) = [loss for loss in LOSSES[options.task] if loss.name == "cross-entropy"]
    return training_graph(base, wanted, options, loss, False, not padded, "train.onnx").model


@pytest.mark.parametrize(("padded", "chosen"), [(False, ("query", "value")), (True, ("query", "key", "dense"))])
def test_all_minilm_l6_keeps_loss_and_gradients(minilm, monkeypatch, padded, chosen):
    fused = minilm_graph(minilm, padded, chosen)
    with monkeypatch.context() as without:
        for name in ("share_inputs", "keep_slopes", "scale_products"):
            without.setattr(training_graphs, name, lambda graph: graph)
        without.setattr(training_graphs, "gather_heads", lambda model: model)
        plain = minilm_graph(minilm, padded, chosen)
    rng, mask = np.random.default_rng(0), (np.arange(9) < np.array([[9], [4], [7]])).astype(np.int64)
    feeds = {"input_ids": rng.integers(1000, 20000, mask.shape), "attention_mask": mask, "labels": np.array([1, 0, 4])}
    feeds |= {"token_type_ids": np.zeros_like(mask), "loss_weight": np.full(3, 1 / 3, np.float32)}
    for x in [v for v in fused.graph.inputs if v.name not in feeds]:
        rank = 0 if "layer.2" in str(x.name) and "query" in str(x.name) else 1 + sum(map(ord, str(x.name)[:-1])) % 4
        shape = [d if isinstance(d, int) else 5 if d == "outputs" else rank for d in dims(x)]
        feeds[str(x.name)] = rng.standard_normal(shape).astype(np.float32) * np.float32(0.05)
    results = []
    for model in (fused, plain):
        with open_session(model) as session:
            names = sorted(y.name for y in session.get_outputs())
            results.append(dict(zip(names, session.run(names, feeds), strict=True)))
    one, other = results
    assert one.keys() == other.keys()
    for name, y in other.items():
        np.testing.assert_allclose(one[name], y, rtol=0, atol=2e-5 * max(np.abs(y).max(initial=0), 1e-6), err_msg=name)


def test_a_model_that_ends_in_gelu_trains(tmp_path):
    net = Net(20)
    net.output(net.gelu(net.linear(net("Tanh", net.linear("x", "first", 6, 8)), "last", 8, 5), operator=True), "y")
    source = tmp_path / "net.onnx"
    onnx.save(
        net.model([("x", onnx.TensorProto.FLOAT, ["batch", 6])], [("y", onnx.TensorProto.FLOAT, ["batch", 5])]), source
    )
    bundle = to_bundle(source, tmp_path)
    assert not bundle.manifest.lost
    (record,) = [r for r in bundle.manifest.training if r.loss == "cotangent" and not r.dropout]
    assert set(record.points) == {p.id for p in bundle.manifest.points}
    assert_checked(bundle)
