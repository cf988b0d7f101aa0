"""Dimensions that take one size and inputs that take one value: `--fix NAME=NUMBER`."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgelora.bundle import Bundle
from edgelora.cli.main import main
from edgelora.errors import ConversionError
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources import fixed, open_source
from tests.convert.bundles import assert_checked, base_outputs, relative, run_onnx
from tests.convert.networks import FLOAT, INT64, Net, save

WINDOW, WIDTH = 16, 4
OPTIONS = ConvertOptions(task="feature-extraction", target_modules=".*")


def detector(folder):
    """A voice detector: frames of one length, a state, and weights that the sample rate chooses."""
    net = Net(18)
    kinds = {}
    for rate in ("slow", "fast"):
        inner = Net(18, seed=len(kinds))
        inner.output(inner.linear("x", rate, WINDOW, WIDTH), f"{rate}_out")
        made = helper.make_tensor_value_info(f"{rate}_out", FLOAT, None)
        kinds[rate] = helper.make_graph(inner.nodes, rate, [], [made])
        net.weights |= inner.weights
    slow = net("Equal", "rate", net.const(8000, np.int64))
    heard = net("If", slow, then_branch=kinds["slow"], else_branch=kinds["fast"])
    net.output(net("Add", heard, net("ReduceSum", "state", net.const([0], np.int64), keepdims=0)), "y")
    inputs = [("x", FLOAT, [None, None]), ("state", FLOAT, [2, None, WIDTH]), ("rate", INT64, [])]
    return save(net.model(inputs, [("y", FLOAT, None)], check=False), folder)


def test_a_sample_rate_and_a_window(tmp_path):
    path = detector(tmp_path)
    source = fixed(open_source(str(path)), {"rate": 16000, "x_dim_1": WINDOW})
    convert(source, tmp_path / "out.edgelora", OPTIONS)
    bundle = Bundle.open(tmp_path / "out.edgelora")
    assert [p.id for p in bundle.manifest.points] == ["fast"]
    assert {s.name: s.shape for s in bundle.manifest.inputs} == {
        "x": ("x_dim_0", WINDOW),
        "state": (2, "x_dim_0", WIDTH),
    }
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((5, WINDOW)), "state": rng.standard_normal((2, 5, WIDTH))}
    inputs = {name: x.astype(np.float32) for name, x in inputs.items()}
    wanted = run_onnx(path, {**inputs, "rate": np.array(16000)})
    assert relative(base_outputs(bundle, inputs)["y"], wanted["y"]) < 1e-6
    assert_checked(bundle)


def test_the_command_remembers_what_was_fixed(tmp_path, capsys):
    path, bundle = detector(tmp_path), tmp_path / "out.edgelora"
    given = ["--task", "feature-extraction", "--target-modules", "re:.*", "--fix", "rate=8000", f"x_dim_1={WINDOW}"]
    assert main(["convert", str(path), "-o", str(bundle), *given]) == 0
    np.savez(tmp_path / "in.npz", x=np.ones((2, WINDOW)), state=np.zeros((2, 2, WIDTH)))
    inputs = ["--source", str(path), "--inputs", str(tmp_path / "in.npz")]
    assert main(["check", str(bundle), *inputs]) == 0
    assert "4 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settled", "message"),
    [
        ({"sr": 16000}, "no dimension or input sr to fix; its dynamic dimensions are x_dim_0, x_dim_1, state_dim_1"),
        ({"x_dim_1": 0}, "x_dim_1 is a dimension"),
        ({"x_dim_1": 1.5}, "x_dim_1 is a dimension"),
        ({"state": 0}, "fix state_dim_1 too"),
        ({"rate": 0.5}, "holds int64, which 0.5 is not"),
    ],
)
def test_what_cannot_be_fixed(settled, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        fixed(open_source(str(detector(tmp_path))), settled)


def test_a_form_that_is_none(tmp_path, capsys):
    assert main(["convert", str(detector(tmp_path)), "-o", str(tmp_path / "out"), "--fix", "rate"]) != 0
    assert "NAME=NUMBER" in capsys.readouterr().err


def test_a_model_of_one_size_names_the_remedy(tmp_path):
    with pytest.raises(ConversionError, match="--fix x_dim_1=SIZE"):
        convert(fixed(open_source(str(detector(tmp_path))), {"rate": 16000}), tmp_path / "out", OPTIONS)


def test_a_float_input_is_a_constant(tmp_path):
    net = Net(18)
    scaled = net("Mul", "x", "gain")
    net.output(net.linear(scaled, "up", WIDTH, WIDTH), "y")
    inputs = [("x", TensorProto.FLOAT, ["batch", WIDTH]), ("gain", TensorProto.FLOAT, [1])]
    path = save(net.model(inputs, [("y", FLOAT, None)], check=False), tmp_path)
    convert(fixed(open_source(str(path)), {"gain": 0.5}), tmp_path / "out.edgelora", OPTIONS)
    bundle = Bundle.open(tmp_path / "out.edgelora")
    x = np.ones((2, WIDTH), np.float32)
    wanted = run_onnx(path, {"x": x, "gain": np.array([0.5], np.float32)})
    assert relative(base_outputs(bundle, {"x": x})["y"], wanted["y"]) < 1e-6
