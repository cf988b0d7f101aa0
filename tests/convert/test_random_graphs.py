"""Random small networks of linear layers convert, their gradients equal torch's, and the check passes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.convert.bundles import assert_checked, relative, to_bundle, train_feeds
from tests.convert.networks import FLOAT, Net

ACTIVATIONS = {"Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Softplus": torch.nn.functional.softplus, "none": None}


@st.composite
def networks(draw):
    """A chain of 1 to 4 linear layers of several spellings, some with a skip, on inputs of rank 2 to 4."""
    net = Net(draw(st.integers(11, 23)), seed=draw(st.integers(0, 999)))
    rank = draw(st.integers(2, 4))
    width = first = draw(st.integers(1, 9))
    x, recipe = "x", []
    for layer in range(draw(st.integers(1, 4))):
        forms = ["matmul", "transposed", "constant"] + (["gemm", "gemm transposed"] if rank == 2 else [])
        form, outer = draw(st.sampled_from(forms)), draw(st.integers(1, 9))
        bias = draw(st.sampled_from([None, "right", "left"]))
        activation, skip = draw(st.sampled_from(list(ACTIVATIONS))), draw(st.booleans())
        name = f"layers.{layer}.fc"
        shape = (outer, width) if "transposed" in form else (width, outer)
        weight = net.weight(f"{name}.weight", *shape, scale=1 / np.sqrt(width))
        if bias:
            net.weight(f"{name}.bias", outer)
        if form.startswith("gemm"):
            given = [f"{name}.bias"] if bias else []
            y = net("Gemm", x, weight, *given, transB=int("transposed" in form), name=f"/{name}/Gemm")
        else:
            if form == "transposed":
                weight = net("Transpose", weight, perm=[1, 0])
            if form == "constant":
                weight = net.const(net.weights[f"{name}.weight"], node=True)
            y = net("MatMul", x, weight, name=f"/{name}/MatMul")
            if bias:
                y = net("Add", *([y, f"{name}.bias"] if bias == "right" else [f"{name}.bias", y]))
        if activation != "none":
            y = net(activation, y)
        skip = skip and outer == width
        if skip:
            y = net("Add", x, y)
        recipe.append((name, "transposed" in form, bool(bias), activation, skip))
        x, width = y, outer
    net.output(x, "y")
    leading = ["batch", "rows", "columns"][: rank - 1]
    model = net.model([("x", FLOAT, [*leading, first])], [("y", FLOAT, [*leading, width])], check=False)
    sizes = draw(st.tuples(*[st.integers(1, 4)] * (rank - 1)))
    return net, model, recipe, np.random.default_rng(0).standard_normal((*sizes, first)).astype(np.float32)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(networks())
def test_gradients_equal_torch_and_the_check_passes(drawn):
    net, model, recipe, x = drawn
    with tempfile.TemporaryDirectory() as folder:
        bundle = to_bundle(model, Path(folder))
        points = bundle.manifest.points
        assert [p.layer for p in points] == list(range(len(recipe)))
        assert [p.id for p in points] == [name for name, *_ in recipe]
        feeds = train_feeds(bundle, {"x": x}, rank=2)
        tensors = {n: torch.from_numpy(f.astype(np.float64)).requires_grad_() for n, f in feeds.items() if n != "x"}
        y = torch.from_numpy(x.astype(np.float64))
        for name, transposed, bias, activation, skip in recipe:
            weight = torch.from_numpy(net.weights[f"{name}.weight"].astype(np.float64))
            a, b = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
            z = y @ (weight.T if transposed else weight) + y @ a @ b
            z = z + torch.from_numpy(net.weights[f"{name}.bias"]) if bias else z
            function = ACTIVATIONS[activation]
            z = function(z) if function else z
            y = y + z if skip else z
        assert relative(bundle.forward.run(feeds)["y"], y.detach().numpy()) < 1e-5
        cotangent = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
        (y * torch.from_numpy(cotangent)).sum().backward()
        record = bundle.training("cotangent", dropout=False)
        got = bundle.graph(record.file).run({**feeds, "cotangent.y": cotangent})
        assert set(got) == {f"grad.{name}" for name in tensors}
        for name, tensor in tensors.items():
            assert tensor.grad is not None
            assert relative(got[f"grad.{name}"], tensor.grad.numpy()) < 1e-4, name
        assert_checked(bundle)
