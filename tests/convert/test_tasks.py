"""Heads and losses of every task against torch: outputs, the loss, and the gradient of every adapter tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgelora.errors import ConversionError
from edgelora_tools.heads import POOLINGS, TASKS
from edgelora_tools.map_heads import MAP_HEADS
from tests.convert import networks
from tests.convert.bundles import base_outputs, relative, to_bundle, train_feeds
from tests.convert.networks import FLOAT, INT64, VOCABULARY, WIDTH, Net, tokens_of

ROWS, LENGTH, CLASSES = 4, 6, 3


def network():
    """Tokens -> hidden [batch, sequence, width] that mixes the tokens of a row; a pooled output beside it."""
    net = Net(17)
    x = net("Gather", net.weight("words.weight", VOCABULARY, WIDTH, scale=1.0), "input_ids")
    x = net("Tanh", net.linear(x, "first", WIDTH, WIDTH))
    x = net("Add", x, net.reduce_mean(x, [1]))
    net.output(net.linear(x, "second", WIDTH, WIDTH), "hidden")
    net.output(net("Tanh", net("Gather", "hidden", net.const(1, np.int64), axis=1)), "pooled")
    return net


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    """The network's bundle for a task, each converted once."""
    net, made = network(), {}
    shape = ["batch", "sequence"]
    model = net.model(
        [("input_ids", INT64, shape), ("attention_mask", INT64, shape)],
        [("hidden", FLOAT, [*shape, WIDTH]), ("pooled", FLOAT, ["batch", WIDTH])],
    )

    def convert(task, pooling="mean"):
        if (task, pooling) not in made:
            folder = tmp_path_factory.mktemp("task")
            made[task, pooling] = to_bundle(model, folder, task=task, pooling=pooling)
        return net, made[task, pooling]

    return convert


def torch_outputs(net, feeds, task, pooling):
    """The task's output in torch, of tensors by name; `.mask` entries drop inputs of the points."""
    weights = {n: torch.from_numpy(w).double() for n, w in net.weights.items() if w.dtype == np.float32}

    def linear(x, name):
        y = x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return y + x * feeds.get(f"{name}.mask", 1.0) @ feeds[f"{name}.lora_A"] @ feeds[f"{name}.lora_B"]

    x = torch.tanh(linear(weights["words.weight"][feeds["input_ids"].long()], "first"))
    hidden = linear(x + x.mean(1, keepdim=True), "second")
    if task == "feature-extraction":
        return {"hidden": hidden, "pooled": torch.tanh(hidden[:, 1])}
    if pooling == "pooler":
        features = torch.tanh(hidden[:, 1])
    elif pooling == "cls":
        features = hidden[:, 0]
    else:
        mask = feeds["attention_mask"].unsqueeze(-1)
        features = (hidden * mask).sum(1) / mask.sum(1)
    if task == "sentence-embedding":
        return {"embedding": F.normalize(features, dim=-1)}
    name = "regressor" if task == "regression" else "classifier"
    source = hidden if task == "token-classification" else features
    return {"logits": F.linear(source, feeds[f"{name}.weight"], feeds[f"{name}.bias"])}


def torch_loss(loss, y, feeds):
    """The losses as torch writes them."""
    weight = feeds["loss_weight"]
    if loss == "cross-entropy":
        flat = F.cross_entropy(y.reshape(-1, CLASSES), feeds["labels"].long().reshape(-1), reduction="none")
        return (weight.reshape(-1) * flat).sum()
    if loss == "mse":
        return (weight * F.mse_loss(y, feeds["targets"], reduction="none").mean(-1)).sum()
    a, p = feeds["anchors"].long(), feeds["positives"].long()
    if loss == "contrastive":
        scores = y[a] @ y.T * feeds["inverse_temperature"] + feeds["bias_mask"]
        return (weight * F.cross_entropy(scores, p, reduction="none")).sum()
    n = feeds["negatives"].long()
    each = F.triplet_margin_loss(y[a], y[p], y[n], margin=float(feeds["margin"]), reduction="none", eps=0.0)
    return (weight * each).sum()


def loss_feeds(rng, shape):
    """Every input that any loss takes, for logits or embeddings of this shape."""
    rows = shape[0]
    mask = np.zeros((3, rows), np.float32)
    mask[np.arange(3), np.arange(3)] = -1e9
    mask[1, 3] = -1e9
    return {
        "labels": rng.integers(0, CLASSES, shape[:-1]),
        "targets": rng.standard_normal(shape).astype(np.float32),
        "loss_weight": rng.uniform(0.1, 1.0, shape[:-1]).astype(np.float32),
        "anchors": np.array([0, 1, 2]),
        "positives": np.array([1, 2, 0]),
        "negatives": np.array([3, 3, 1]),
        "bias_mask": mask,
        "inverse_temperature": np.asarray(20.0, np.float32),
        "margin": np.asarray(0.7, np.float32),
    }


CASES = [
    ("sequence-classification", "mean", "cross-entropy"),
    ("sequence-classification", "cls", "cross-entropy"),
    ("sequence-classification", "pooler", "cross-entropy"),
    ("token-classification", "mean", "cross-entropy"),
    ("regression", "mean", "mse"),
    ("sentence-embedding", "mean", "contrastive"),
    ("sentence-embedding", "mean", "triplet"),
    ("sentence-embedding", "mean", "cotangent"),
    ("feature-extraction", "mean", "cotangent"),
]


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize(("task", "pooling", "loss"), CASES, ids=["-".join(case) for case in CASES])
def test_loss_and_gradients_equal_torch(task, pooling, loss, dropout, bundle_of):
    net, bundle = bundle_of(task, pooling)
    rng = np.random.default_rng(1)
    feeds = train_feeds(bundle, tokens_of(ROWS, LENGTH, seed=3))
    outputs = bundle.forward.run(feeds)
    record = bundle.training(loss, dropout)
    assert record.dropout is dropout
    (first, *_) = outputs.values()
    extra = loss_feeds(rng, first.shape)
    if "pairs" in str(record.inputs):
        extra["loss_weight"] = rng.uniform(0.1, 1.0, 3).astype(np.float32)
    for name, y in outputs.items():
        extra[f"cotangent.{name}"] = rng.standard_normal(y.shape).astype(np.float32)
    for point in bundle.manifest.points:
        extra[f"{point.id}.mask"] = (rng.random((ROWS, LENGTH, WIDTH)) < 0.6).astype(np.uint8)
    expected_names = {spec.name for spec in record.inputs}
    assert expected_names <= set(extra)
    assert {n.endswith(".mask") for n in expected_names} >= {dropout}
    feeds |= {name: extra[name] for name in expected_names}

    tensors = {n: torch.from_numpy(np.asarray(x, np.float64)) for n, x in feeds.items()}
    trained = [name.removeprefix("grad.") for name in bundle.graph(record.file).outputs if name.startswith("grad.")]
    assert len(trained) == 4 + 2 * (bundle.manifest.head is not None)
    for name in trained:
        tensors[name].requires_grad_()
    expected = torch_outputs(net, tensors, task, pooling)
    assert list(expected) == list(outputs)
    if not dropout:
        for name, y in expected.items():
            assert relative(outputs[name], y.detach().numpy()) < 1e-6
    if loss == "cotangent":
        value = sum((tensors[f"cotangent.{name}"] * y).sum() for name, y in expected.items())
        assert isinstance(value, torch.Tensor)
    else:
        ((_, y),) = expected.items()
        value = torch_loss(loss, y, tensors)
    value.backward()
    ranks = {spec.name: len(spec.shape) for spec in record.inputs}
    fed = {
        name: x.reshape(-1, WIDTH) if name.endswith(".mask") and ranks[name] == 2 else x for name, x in feeds.items()
    }
    got = bundle.graph(record.file).run(fed)
    assert list(record.outputs) == [name for name in got if not name.startswith("grad.")]
    if loss != "cotangent":
        assert got["loss"].shape == ()
        assert abs(got["loss"] - value.item()) < 1e-5 * abs(value.item())
    for name in trained:
        gradient = tensors[name].grad
        assert gradient is not None
        assert float(gradient.norm()) > 1e-6
        assert relative(got[f"grad.{name}"], gradient.numpy()) < 2e-5, name


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("task", [task for task in TASKS if task not in (*MAP_HEADS, "text-generation")])
def test_outputs_of_every_task(task, pooling, transformer_file, task_bundle):
    """Names, shapes and the head, on the transformer with padding; the values in numpy."""
    from tests.convert.bundles import run_onnx

    bundle = task_bundle(task, pooling=pooling)
    inputs = tokens_of(3, 7)
    source = run_onnx(transformer_file, inputs)
    hidden = source["last_hidden_state"].astype(np.float64)
    mask = inputs["attention_mask"][..., None]
    features = {
        "mean": (hidden * mask).sum(1) / mask.sum(1),
        "cls": hidden[:, 0],
        "pooler": source["pooler_output"],
        "flatten": source["pooler_output"],  # the one of fixed sizes
    }[pooling]
    from edgelora.probes import random_head

    head = random_head(bundle.manifest, np.random.default_rng(0))
    got = base_outputs(bundle, inputs)
    if task == "feature-extraction":
        assert bundle.manifest.head is None
        assert set(got) == {"last_hidden_state", "pooler_output"}
        return
    if task in ("sentence-embedding", "speaker-verification"):
        assert bundle.manifest.head is None
        expected = {"embedding": features / np.linalg.norm(features, axis=-1, keepdims=True)}
    else:
        assert bundle.manifest.head is not None
        assert bundle.manifest.head.features == WIDTH
        assert bundle.manifest.head.per == ("token" if task == "token-classification" else "sequence")
        read = hidden if task == "token-classification" else features
        name = bundle.manifest.head.name
        assert name == ("regressor" if task == "regression" else "classifier")
        expected = {"logits": read @ head[f"{name}.weight"].T + head[f"{name}.bias"]}
    assert set(got) == set(expected) == {spec.name for spec in bundle.manifest.outputs}
    for name, y in expected.items():
        assert got[name].shape == y.shape
        assert relative(got[name], y) < 1e-5


def test_mean_without_a_mask_is_over_all_positions(tmp_path):
    net = Net(17)
    net.output(net.linear("x", "first", 8, 8), "hidden")
    shape = ["batch", "sequence", 8]
    bundle = to_bundle(
        net.model([("x", FLOAT, shape)], [("hidden", FLOAT, shape)]), tmp_path, task="sentence-embedding"
    )
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    features = (x @ net.weights["first.weight"] + net.weights["first.bias"]).mean(1)
    wanted = features / np.linalg.norm(features, axis=-1, keepdims=True)
    assert relative(base_outputs(bundle, {"x": x})["embedding"], wanted) < 1e-6


def test_mean_uses_a_mask_that_the_network_itself_does_not_read(tmp_path):
    net = Net(17)
    net.output(net.linear("x", "first", 8, 8), "hidden")
    shape = ["batch", "sequence"]
    model = net.model(
        [("x", FLOAT, [*shape, 8]), ("attention_mask", INT64, shape)], [("hidden", FLOAT, [*shape, 8])]
    )  # fmt: skip
    bundle = to_bundle(model, tmp_path, task="sentence-embedding")
    assert [v.name for v in bundle.manifest.inputs] == ["x", "attention_mask"]
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    hidden = x @ net.weights["first.weight"] + net.weights["first.bias"]
    features = np.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    wanted = features / np.linalg.norm(features, axis=-1, keepdims=True)
    got = base_outputs(bundle, {"x": x, "attention_mask": mask})["embedding"]
    assert relative(got, wanted) < 1e-6


def test_a_row_that_is_all_padding_gives_numbers(task_bundle):
    inputs = tokens_of(2, 4)
    inputs["attention_mask"][1] = 0
    assert np.isfinite(base_outputs(task_bundle("sequence-classification"), inputs)["logits"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "translation"}, "unknown task 'translation'; one of sequence-classification, .*feature-extraction"),
        ({"task": "regression", "pooling": "max"}, "unknown pooling 'max'; one of mean, cls, pooler"),
        ({"task": "regression", "output": "logits"}, "no tensor 'logits'"),
        ({"task": "regression", "output": "pooler_output"}, r"rank 3 or 4; 'pooler_output' has shape \[batch,16\]"),
        ({"task": "regression", "pooling": "pooler", "output": "last_hidden_state"}, r"rank 2; 'last_hidden_state'"),
        ({"task": "feature-extraction", "output": "nothing"}, "no tensor 'nothing'"),
        ({"task": "regression", "target_modules": ("quary_key",)}, "quary_key.*attention.query_key"),
        ({"task": "regression", "exclude_modules": ("nope",)}, "'nope' matches no insertion point"),
    ],
)
def test_choices_that_do_not_exist_name_those_that_do(options, message, transformer_file, tmp_path):
    from edgelora.errors import EdgeLoraError

    with pytest.raises(EdgeLoraError, match=message):
        to_bundle(transformer_file, tmp_path, **options)
    assert not (tmp_path / "out.edgelora").exists()


def test_a_source_without_the_output_that_the_pooling_reads(tmp_path):
    model = networks.transformer(17, pooler=False)
    with pytest.raises(ConversionError, match=r"'pooler' needs .* rank 2; the source has last_hidden_state"):
        to_bundle(model, tmp_path, task="regression", pooling="pooler")
    with pytest.raises(ConversionError, match=r"token classification needs .* rank 3; the source has y"):
        to_bundle(networks.perceptron(17), tmp_path, task="token-classification")


def test_integer_outputs_are_no_features(tmp_path):
    """An argmax beside the logits: feature extraction trains through the logits alone."""
    net = Net(17)
    net.output(net.linear(net("Tanh", net.linear("x", "first", 8, 8)), "second", 8, 5), "y")
    net.output(net("ArgMax", "y", axis=-1, keepdims=0), "class")
    model = net.model(
        [("x", FLOAT, ["batch", 8])], [("class", INT64, ["batch"]), ("y", FLOAT, ["batch", 5])]
    )  # fmt: skip
    bundle = to_bundle(model, tmp_path)
    assert {v.name: v.dtype for v in bundle.manifest.outputs} == {"class": "int64", "y": "float32"}
    from tests.convert.bundles import assert_checked

    assert_checked(bundle)


def test_a_head_beside_a_layer_of_the_same_name(tmp_path):
    """The base has a `classifier` of its own: the new head's tensors must not be taken for its weights."""
    net = Net(17)
    x = net("Tanh", net.linear("x", "first", 8, 8))
    net.output(net.linear(x, "classifier", 8, 5), "logits")
    model = net.model([("x", FLOAT, ["batch", 8])], [("logits", FLOAT, ["batch", 5])])
    bundle = to_bundle(model, tmp_path, task="sequence-classification", pooling="pooler")
    feeds = train_feeds(bundle, {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)})
    y = feeds["x"].astype(np.float64)
    for name in ("first", "classifier"):
        weight, bias = net.weights[f"{name}.weight"], net.weights[f"{name}.bias"]
        y = y @ (weight + feeds[f"{name}.lora_A"] @ feeds[f"{name}.lora_B"]) + bias
        y = np.tanh(y) if name == "first" else y
    assert bundle.manifest.head is not None
    wanted = y @ feeds[bundle.manifest.head.weight].T + feeds[bundle.manifest.head.bias]
    assert relative(bundle.forward.run(feeds)["logits"], wanted) < 1e-5
    from tests.convert.bundles import assert_checked

    assert_checked(bundle)


def test_a_model_with_inputs_named_as_a_loss_names_its_own(tmp_path):
    """A source input called `labels` or `loss_weight` cannot share the name with the loss's input."""
    net = Net(17)
    x = net("Add", net.linear("labels", "first", 8, 8), net.linear("margin", "second", 8, 8))
    net.output(net("Tanh", x), "y")
    shape = ["batch", 8]
    model = net.model([("labels", FLOAT, shape), ("margin", FLOAT, shape)], [("y", FLOAT, shape)])
    with pytest.raises(ConversionError, match="labels"):
        to_bundle(model, tmp_path, task="sequence-classification", pooling="pooler")
