"""Heads on maps: logits, losses and gradients against torch, channels first and last, sizes fixed and dynamic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgelora.adapter import new_adapter, read_adapter
from edgelora.cli.main import main
from edgelora.config import LoraConfig
from edgelora.errors import ConversionError
from edgelora.runtime import Model
from tests.convert.bundles import assert_checked, relative, to_bundle, train_feeds
from tests.convert.networks import FLOAT, Net

ROWS, CLASSES, CHANNELS = 3, 4, 6
TASKS = {"semantic-segmentation": "cross-entropy-dice", "keypoint-detection": "heatmap"}


def network(last: bool, dynamic: bool):
    """A picture of 12 × 16 -> a map `[batch, 6, 6, 8]` by two convolutions; with `last`, its colours stand last."""
    net = Net(18)
    x = net("Transpose", "picture", perm=[0, 3, 1, 2]) if last else "picture"
    weight = net.weight("first.weight", 5, 3, 3, 3, scale=0.4)
    x = net("Conv", x, weight, pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3], name="/first/Conv")
    weight = net.weight("second.weight", CHANNELS, 5, 1, 1, scale=0.6)
    x = net("Conv", net("Tanh", x), weight, kernel_shape=[1, 1], name="/second/Conv")
    net.output(x, "map")
    height, width = ("height", "width") if dynamic else (12, 16)
    given = ["batch", height, width, 3] if last else ["batch", 3, height, width]
    inner = ("h", "w") if dynamic else (6, 8)
    return net, net.model([("picture", FLOAT, given)], [("map", FLOAT, ["batch", CHANNELS, *inner])])


def torch_logits(net, feeds, task, last):
    """The logits in torch."""
    weights = {name: torch.from_numpy(w).double() for name, w in net.weights.items()}

    def conv(x, name, **how):
        kernel = weights[f"{name}.weight"]
        low = F.conv2d(x, feeds[f"{name}.lora_A"], **how)
        return F.conv2d(x, kernel, **how) + F.conv2d(low, feeds[f"{name}.lora_B"])

    x = feeds["picture"].permute(0, 3, 1, 2) if last else feeds["picture"]
    x = conv(torch.tanh(conv(x, "first", padding=1, stride=2)), "second")
    name = "classifier" if task == "semantic-segmentation" else "keypoints"
    logits = F.conv2d(x, feeds[f"{name}.weight"][:, :, None, None], feeds[f"{name}.bias"])
    if task == "keypoint-detection":
        return logits
    size = tuple(feeds["picture"].shape[1:3] if last else feeds["picture"].shape[2:])
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def torch_loss(task, z, feeds):
    """The losses as torch writes them."""
    weight = feeds["loss_weight"]
    if task == "keypoint-detection":
        target = feeds["targets"].flatten(2).transpose(1, 2)
        nll = F.cross_entropy(z.flatten(2).transpose(1, 2), target, reduction="none")  # [n, k]: places are the classes
        return (weight * nll).sum()
    labels = feeds["labels"].long()
    nll = (weight * F.cross_entropy(z, labels, reduction="none")).sum()
    seen = (weight > 0).double()[:, None]
    p, t = z.softmax(1), F.one_hot(labels, CLASSES).permute(0, 3, 1, 2)
    dice = (2 * (seen * p * t).sum((2, 3)) + 1) / ((seen * (p + t)).sum((2, 3)) + 1)
    return nll + (feeds["dice_weight"] * (1 - dice.mean(1))).sum()


def loss_feeds(rng, task, shape):
    """The inputs of the task's loss for logits of this shape; some pixels and points do not count."""
    if task == "keypoint-detection":
        q = rng.random(shape)
        weight = rng.uniform(0.5, 1.5, shape[:2]) * (rng.random(shape[:2]) < 0.7)
        return {
            "targets": (q / q.sum((2, 3), keepdims=True)).astype(np.float32),
            "loss_weight": weight.astype(np.float32),
        }
    places = (shape[0], *shape[2:])
    return {
        "labels": rng.integers(0, CLASSES, places),
        "loss_weight": (rng.uniform(0.5, 1.5, places) * (rng.random(places) < 0.7) / 100).astype(np.float32),
        "dice_weight": rng.uniform(0.5, 1.5, shape[0]).astype(np.float32),
    }


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    """The network's bundle for a task, each converted once."""
    made = {}

    def convert(task, last, dynamic):
        if (task, last, dynamic) not in made:
            net, model = network(last, dynamic)
            options: dict[str, Any] = {"image": {"size": (14, 10)}} if dynamic else {}
            folder = tmp_path_factory.mktemp("map")
            bundle = to_bundle(model, folder, task=task, target_modules=("first", "second"), **options)
            made[task, last, dynamic] = net, bundle
        return made[task, last, dynamic]

    return convert


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("task", TASKS)
def test_logits_loss_and_gradients_equal_torch(task, last, dynamic, bundle_of):
    net, bundle = bundle_of(task, last, dynamic)
    rng, size = np.random.default_rng(1), (14, 10) if dynamic else (12, 16)
    shape = (ROWS, *size, 3) if last else (ROWS, 3, *size)
    feeds = adapter_feeds(bundle, {"picture": rng.standard_normal(shape).astype(np.float32)})
    assert bundle.manifest.head.per == "pixel"
    logits = bundle.forward.run(feeds)["logits"]
    record = bundle.training(TASKS[task], False)
    extra = loss_feeds(rng, task, logits.shape)
    assert {spec.name for spec in record.inputs} == set(extra)
    tensors = {n: torch.from_numpy(np.asarray(x, np.float64)) for n, x in (feeds | extra).items()}
    trained = [name.removeprefix("grad.") for name in bundle.graph(record.file).outputs if name.startswith("grad.")]
    assert len(trained) == 6
    for name in trained:
        tensors[name].requires_grad_()
    wanted = torch_logits(net, tensors, task, last)
    assert relative(logits, wanted.detach().numpy()) < 1e-6
    value = torch_loss(task, wanted, tensors)
    value.backward()
    got = bundle.graph(record.file).run(feeds | extra)
    assert abs(got["loss"] - value.item()) < 1e-5 * abs(value.item())
    for name in trained:
        gradient = tensors[name].grad
        assert gradient is not None
        if name == "keypoints.bias":  # a distribution over places is that of logits with any constant
            assert float(gradient.norm()) < 1e-12
            assert np.abs(got[f"grad.{name}"]).max() < 1e-5
            continue
        assert float(gradient.norm()) > 1e-6
        assert relative(got[f"grad.{name}"], gradient.numpy()) < 2e-5, name


def adapter_feeds(bundle, inputs):
    """Inputs with a random adapter at every point, and a random head of `CLASSES` outputs."""
    feeds = train_feeds(bundle, inputs)
    rng = np.random.default_rng(5)
    for point in bundle.manifest.points:
        feeds[point.input_a] = (rng.standard_normal(point.shape_a(3)) * 0.3).astype(np.float32)
        feeds[point.input_b] = (rng.standard_normal(point.shape_b(3)) * 0.3).astype(np.float32)
    head = bundle.manifest.head
    feeds[head.weight] = rng.standard_normal((CLASSES, head.features)).astype(np.float32)
    feeds[head.bias] = rng.standard_normal(CLASSES).astype(np.float32)
    return feeds


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("task", TASKS)
def test_the_check_passes(task, last, bundle_of):
    _, bundle = bundle_of(task, last, False)
    assert_checked(bundle)
    assert bundle.manifest.mixed is None
    size = (12, 16) if task == "semantic-segmentation" else (6, 8)
    assert bundle.manifest.outputs[0].shape == ("batch", "outputs", *size)


class Segmenter(torch.nn.Module):
    """The network with the head that PEFT finds in torch: a convolution of one pixel."""

    def __init__(self, net):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 5, 3, 2, 1, bias=False)
        self.second = torch.nn.Conv2d(5, CHANNELS, 1, bias=False)
        self.classifier = torch.nn.Conv2d(CHANNELS, CLASSES, 1)
        given = {n: torch.from_numpy(w) for n, w in net.weights.items() if n.endswith(".weight")}
        self.load_state_dict(given, strict=False)

    def forward(self, x):
        logits = self.classifier(self.second(torch.tanh(self.first(x))))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def test_an_adapter_with_a_head_of_maps_goes_to_peft_and_back(bundle_of, tmp_path):
    peft = pytest.importorskip("peft")
    net, bundle = bundle_of("semantic-segmentation", False, False)
    rng, config = np.random.default_rng(2), LoraConfig(r=3, lora_alpha=6)
    fresh = new_adapter(bundle.manifest, config, rng=rng, labels=("a", "b", "c", "d"))
    moved = {n: (x + rng.standard_normal(x.shape) * 0.3).astype(np.float32) for n, x in fresh.tensors.items()}
    adapter = fresh.with_tensors(moved)
    Model.open(bundle.path).store.save("ann", adapter)
    folder = tmp_path / "peft"
    assert main(["export", str(bundle.path), "--adapter", "ann", "-o", str(folder)]) == 0
    x = rng.standard_normal((ROWS, 3, 12, 16)).astype(np.float32)
    module = peft.PeftModel.from_pretrained(Segmenter(net), str(folder)).eval()
    wanted = bundle.forward.run({"picture": x} | bundle.feeds(adapter))["logits"]
    assert relative(module(torch.from_numpy(x)).detach().numpy(), wanted) < 1e-5
    module.save_pretrained(str(tmp_path / "theirs"))
    for one in (folder, tmp_path / "theirs"):
        back = read_adapter(one, bundle.manifest, accept_base=True)
        back.validate(bundle.manifest)
        assert back.tensors.keys() == moved.keys()
        assert all(np.array_equal(back.tensors[n], t) for n, t in moved.items())


def test_a_source_without_a_map_is_refused_by_name(tmp_path):
    net = Net(17)
    net.output(net.linear("x", "first", 8, 5), "y")
    model = net.model([("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 5])])
    with pytest.raises(ConversionError, match=r"semantic-segmentation needs .* rank 4; the source has y"):
        to_bundle(model, tmp_path, task="semantic-segmentation")


def test_a_map_of_a_source_without_a_picture_cannot_be_enlarged(tmp_path):
    net = Net(17)
    net.output(net("Reshape", net.linear("x", "first", 8, 8), net.const([0, 2, 2, 2], np.int64)), "map")
    model = net.model([("x", FLOAT, ["batch", 8])], [("map", FLOAT, ["batch", 2, 2, 2])])
    with pytest.raises(ConversionError, match="needs a picture as input"):
        to_bundle(model, tmp_path, task="semantic-segmentation")
