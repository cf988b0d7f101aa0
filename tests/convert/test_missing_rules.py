"""An operator without a gradient rule: the error names it, what it blocks and what remains; the rest can be trained."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgelora.cli.main import main
from edgelora_tools.backward import MissingRuleError
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


def test_the_error_names_everything(no_rules, tmp_path):
    with pytest.raises(MissingRuleError) as caught:
        to_bundle(blocked_network("Tan", "Det"), tmp_path)
    error = caught.value
    assert [(m.op_type, m.node) for m in error.missing] == [("Tan", "my_tan"), ("Det", "my_det")]
    assert error.blocked == ("first",)
    assert error.trainable == ("second", "third")
    message = str(error)
    assert "ai.onnx::Tan (node my_tan)" in message
    assert "ai.onnx::Det (node my_det)" in message
    assert "between the loss and first" in message
    assert "still trainable with --target-modules: second third" in message
    assert not (tmp_path / "out.edgelora").exists()


def test_status_and_remedy_on_the_command_line(no_rules, tmp_path, capsys):
    source = save(blocked_network("Det"), tmp_path)
    command = ["convert", str(source), "-o", str(tmp_path / "out.edgelora"), "--task", "feature-extraction", "--json"]
    assert main([*command, "--target-modules", "all-linear"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["kind"] == "MissingRuleError"
    assert "Traceback" not in captured.err
    remedy = captured.err.split("--target-modules: ")[1].split()
    assert remedy == ["second", "third"]
    assert [p.name for p in tmp_path.iterdir()] == [source.name]
    assert main([*command, "--target-modules", *remedy]) == 0
    assert json.loads(capsys.readouterr().out)["verification"]["passed"]


def test_an_operator_beside_the_adapters_blocks_nothing(no_rules, tmp_path):
    source = save(blocked_network("Det"), tmp_path)
    bundle = to_bundle(source, tmp_path, exclude_modules=("first",))
    assert [p.id for p in bundle.manifest.points] == ["second", "third"]
    assert_same_outputs(bundle, source, {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)})
    assert_checked(bundle)


def test_nothing_can_be_trained(no_rules, tmp_path):
    net = Net(17)
    x = net("Reshape", net.linear("x", "only", 8, 16), net.const([-1, 4, 4], np.int64))
    net.output(net("Det", x), "y")
    model = net.model([("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch"])])
    with pytest.raises(MissingRuleError, match="no insertion point can be trained"):
        to_bundle(model, tmp_path)


def test_a_form_that_a_rule_does_not_cover(monkeypatch, tmp_path):
    """A rule that refuses: the same error, with its reason."""

    def refusing(op, node, dy):
        raise ValueError(f"{node.op_type} has a strange attribute")

    monkeypatch.setitem(RULES, ("", "Softsign"), refusing)
    model = networks.perceptron(17, lambda net, x: net("Softsign", x, name="strange"))
    with pytest.raises(
        MissingRuleError, match=r"Softsign \(node strange\): Softsign has a strange attribute"
    ) as caught:
        to_bundle(model, tmp_path)
    assert caught.value.trainable == ("second",)


def test_an_operator_of_another_domain(tmp_path):
    """ONNX Runtime's own operators run but have no rule."""
    from onnx import helper

    model = networks.perceptron(
        17, lambda net, x: net("FastGelu", x, name="theirs", domain="com.microsoft")
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(MissingRuleError, match=r"com\.microsoft::FastGelu \(node theirs\)"):
        to_bundle(model, tmp_path)


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
