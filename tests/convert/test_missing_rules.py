"""An operator without a gradient rule: the error names it, what it blocks and what remains; the rest can be trained."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from edgelora.adapter import absent_adapter, new_adapter
from edgelora.check import check
from edgelora.cli.main import main
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError
from edgelora.objectives import OwnLoss
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig
from edgelora.training_start import chosen_lora
from edgelora_tools.backward import MissingRuleError, differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients import NON_DIFFERENTIABLE, RULES
from tests.convert import networks
from tests.convert.bundles import assert_checked, assert_same_outputs, to_bundle
from tests.convert.networks import FLOAT, Net, save


def blocked_network(*operators):
    """first -> the operators -> third -> y, and second beside them, which no operator blocks."""
    net = Net(17)
    x = net("Reshape", net.linear("x", "first", 8, 16), net.const([-1, 4, 4], np.int64))
    for op_type in operators:
        x = net(op_type, x, name=f"my_{op_type.lower()}")
    x = net("Reshape", x, net.const([-1, 1], np.int64))
    beside = net("Tanh", net.linear("x", "second", 8, 8))
    net.output(net.linear(net("Mul", beside, x), "third", 8, 5), "y")
    return net.model([("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 5])])


@pytest.fixture
def no_rules(monkeypatch):
    """Det, and Tan as a second operator, have no rule in these tests, whatever is written one day."""
    for key in (("", "Det"), ("", "Tan")):
        monkeypatch.delitem(RULES, key, raising=False)
        assert key not in NON_DIFFERENTIABLE


def test_the_rest_is_trained_and_the_lost_are_named(no_rules, tmp_path):
    source = save(blocked_network("Tan", "Det"), tmp_path)
    bundle = to_bundle(source, tmp_path)
    manifest = bundle.manifest
    assert [p.id for p in manifest.points] == ["first", "second", "third"]
    assert [p.id for p in manifest.trainable] == ["second", "third"]
    (lost,) = manifest.lost
    assert (lost.id, lost.blocked_by) == ("first", "ai.onnx::Tan (node my_tan)")
    assert [step.split()[0] for step in lost.path] == ["Reshape", "Tan"]
    assert_same_outputs(bundle, source, {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)})
    assert bundle.training("cotangent", dropout=False).points == ("second", "third")
    assert_checked(bundle)


def test_every_operator_without_a_rule_is_named(no_rules):
    """Also those that a nearer one hides."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="two")
    builder = GraphBuilder(graph)
    x = builder.input("x", ir.DataType.FLOAT, [2, 3, 3])
    det = builder.op.Det(builder.op.Tan(x))
    det.shape, det.dtype = ir.Shape([2]), ir.DataType.FLOAT
    with pytest.raises(MissingRuleError) as caught:
        differentiate(builder.op, list(graph), {det: builder.op.Constant(value_floats=[1.0, 1.0])}, [x])
    assert [m.op_type for m in caught.value.missing] == ["Tan", "Det"]


def test_what_is_lost_on_the_command_line(no_rules, tmp_path, capsys):
    source = save(blocked_network("Det"), tmp_path)
    command = ["convert", str(source), "-o", str(tmp_path / "out.edgelora"), "--task", "feature-extraction"]
    assert main([*command, "--target-modules", "all-linear", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [point["id"] for point in made["lost"]] == ["first"]
    assert made["verification"]["passed"]
    assert main([*command, "--target-modules", "all-linear", "--overwrite"]) == 0
    text = capsys.readouterr().out
    assert "1 of 3 points have no gradient" in text
    assert "ai.onnx::Det (node my_det)" in text
    assert "stands before first" in text
    assert main(["points", str(tmp_path / "out.edgelora"), "--explain"]) == 0
    text = capsys.readouterr().out
    assert "first: Reshape (" in text
    assert "→ Det (my_det)" in text


def test_training_takes_the_points_that_have_a_gradient(no_rules, tmp_path):
    bundle = to_bundle(blocked_network("Det"), tmp_path)
    chosen = chosen_lora(bundle.manifest, None, None)
    assert chosen.target_modules == ("second", "third")
    adapter = new_adapter(bundle.manifest, LoraConfig(r=2, target_modules=("first",)))
    with pytest.raises(ConfigError, match=r"no gradient reaches first: there is no rule for ai\.onnx::Det"):
        Trainer(bundle, adapter, squared_error(bundle), TrainingConfig())


def test_forward_passes_alone_train_a_lost_point(no_rules, tmp_path):
    """SPSA lowers the loss at a point that has no gradient, resumes exactly, and leaves what is not adapted alone."""
    bundle = to_bundle(blocked_network("Det"), tmp_path)
    objective = squared_error(bundle)
    config = TrainingConfig(gradient="spsa", spsa_directions=4, num_train_epochs=60, learning_rate=2e-2, batch_size=16)
    adapter = new_adapter(bundle.manifest, LoraConfig(r=2, target_modules=("first",)))
    trainer = Trainer(bundle, adapter, objective, config)
    losses = [trainer.step(np.arange(16)).loss for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    again = Trainer(bundle, adapter, objective, config)
    assert [again.step(np.arange(16)).loss for _ in range(3)] == losses[:3]


def squared_error(bundle):
    """16 samples whose outputs should be those of another adapter at `first`."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 8)).astype(np.float32)
    feeds = {"x": x, **absent_adapter(bundle.manifest)}
    feeds["first.lora_A"] = rng.standard_normal((8, 2)).astype(np.float32) * np.float32(0.3)
    feeds["first.lora_B"] = rng.standard_normal((2, 16)).astype(np.float32) * np.float32(0.3)
    wanted = bundle.forward.run(feeds)["y"]

    def loss(outputs, rows):
        error = outputs["y"] - wanted[rows]
        return float((error**2).sum()), {"y": 2 * error}

    return OwnLoss(Arrays(x), loss)


class Arrays:
    """Rows of one input."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def lengths(self):
        return np.ones(len(self.x), np.int64)

    def feeds(self, rows):
        return {"x": self.x[rows]}


def test_an_operator_beside_the_adapters_blocks_nothing(no_rules, tmp_path):
    source = save(blocked_network("Det"), tmp_path)
    bundle = to_bundle(source, tmp_path, exclude_modules=("first",))
    assert [p.id for p in bundle.manifest.points] == ["second", "third"]
    assert_same_outputs(bundle, source, {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)})
    assert_checked(bundle)


def test_nothing_can_be_trained(no_rules, tmp_path):
    """The bundle holds an inference graph alone, and says so when it is asked for a gradient."""
    net = Net(17)
    x = net("Reshape", net.linear("x", "only", 8, 16), net.const([-1, 4, 4], np.int64))
    net.output(net("Det", x), "y")
    bundle = to_bundle(net.model([("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch"])]), tmp_path)
    assert bundle.manifest.training == ()
    assert [point.id for point in bundle.manifest.lost] == ["only"]
    assert check(bundle).passed
    with pytest.raises(ConfigError, match=r"no gradient reaches any insertion point.*spsa"):
        bundle.training("cotangent", dropout=False)


def test_a_form_that_a_rule_does_not_cover(monkeypatch, tmp_path):
    """A rule that refuses: the point is lost, with the reason."""

    def refusing(op, node, dy):
        raise ValueError(f"{node.op_type} has a strange attribute")

    monkeypatch.setitem(RULES, ("", "Softsign"), refusing)
    model = networks.perceptron(17, lambda net, x: net("Softsign", x, name="strange"))
    bundle = to_bundle(model, tmp_path)
    (lost,) = bundle.manifest.lost
    assert lost.blocked_by == "ai.onnx::Softsign (node strange): Softsign has a strange attribute"
    assert [point.id for point in bundle.manifest.trainable] == ["second"]
    assert_checked(bundle)


def test_integers_end_the_gradient(tmp_path):
    """Through a Cast to integers nothing flows: the point before it is refused or checked, never wrongly trained."""
    net = Net(17)
    steps = net("Cast", net("Cast", net.linear("x", "first", 8, 8), to=7), to=FLOAT)
    net.output(net.linear(steps, "second", 8, 5), "y")
    model = net.model([("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 5])])
    bundle = to_bundle(model, tmp_path, target_modules=("second",))
    assert_checked(bundle)
    bundle = to_bundle(model, tmp_path, "both")
    assert bundle.training("cotangent", dropout=False).points == ("second",)
