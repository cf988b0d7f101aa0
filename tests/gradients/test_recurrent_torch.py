"""LSTM, GRU and RNN against torch's own modules: outputs and every gradient, with packed sequences too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.reference import evaluator
from tests.gradients.case import Case
from tests.gradients.checker import build, run_forward

torch: Any = pytest.importorskip("torch")

TIME, BATCH, INPUTS, HIDDEN = 5, 3, 4, 3
LENS = [3, 5, 1]
ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}
"""Torch's gates in the order of ONNX: torch has i, f, g, o and r, z, n."""


def module_of(op: str, **options) -> Any:
    torch.manual_seed(0)
    return getattr(torch.nn, op)(INPUTS, HIDDEN, dtype=torch.float64, **options)


def to_onnx(op: str, parts: list[Any]) -> np.ndarray:
    """Rows by gate, in ONNX's order, one array for each direction."""
    return np.stack(
        [np.concatenate([np.split(p.detach().numpy(), len(ORDER[op]))[g] for g in ORDER[op]]) for p in parts]
    )


def weights(op: str, module: Any, gradients: bool = False) -> list[np.ndarray]:
    """W, R and B of the module, or their gradients."""

    def read(name: str) -> list[Any]:
        found = [getattr(module, f"{name}_l0{end}") for end in ("", "_reverse")[: 1 + module.bidirectional]]
        return [p.grad for p in found] if gradients else found

    w, r, wb, rb = (to_onnx(op, read(name)) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return [w, r, np.concatenate([wb, rb], axis=1)]


def by_direction(y: np.ndarray, directions: int) -> np.ndarray:
    """Torch joins the directions along the last axis, ONNX stacks them along the second."""
    return y.reshape(*y.shape[:2], directions, HIDDEN).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize(
    ("op", "options", "attributes"),
    [
        ("LSTM", {}, {}),
        ("GRU", {}, {"linear_before_reset": 1}),
        ("RNN", {}, {}),
        ("RNN", {"nonlinearity": "relu"}, {"activations": ["Relu"]}),
    ],
    ids=["LSTM", "GRU", "RNN", "RNN relu"],
)
def test_torch_agrees(op, options, attributes, bidirectional, packed):
    rng = np.random.default_rng(0)
    directions = 1 + bidirectional
    module = module_of(op, bidirectional=bidirectional, **options)
    x = torch.tensor(rng.standard_normal((TIME, BATCH, INPUTS)), requires_grad=True)
    states = [
        torch.tensor(rng.standard_normal((directions, BATCH, HIDDEN)), requires_grad=True)
        for _ in range(2 if op == "LSTM" else 1)
    ]
    given = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(LENS), enforce_sorted=False) if packed else x
    y, last = module(given, tuple(states) if op == "LSTM" else states[0])
    if packed:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    outputs = [y, *(last if op == "LSTM" else [last])]
    cs = [torch.tensor(rng.standard_normal(tuple(o.shape))) for o in outputs]
    torch.autograd.backward(outputs, cs)

    if "activations" in attributes:
        attributes = {**attributes, "activations": attributes["activations"] * directions}
    direction = "bidirectional" if bidirectional else "forward"
    arrays = [x.detach().numpy(), *weights(op, module), np.array(LENS, np.int32) if packed else None]
    arrays += [s.detach().numpy() for s in states]
    wrt = tuple(i for i, a in enumerate(arrays) if i != 4)
    case = Case(
        op, arrays, {"hidden_size": HIDDEN, "direction": direction, **attributes}, wrt=wrt, outputs=len(outputs)
    )
    expected = [x.grad.numpy(), *weights(op, module, gradients=True), *(s.grad.numpy() for s in states)]
    feeds = {f"x{i}": arrays[i] for i in wrt}
    ys = run_forward(case, arrays)(feeds)
    wanted = [by_direction(y.detach().numpy(), directions), *(o.detach().numpy() for o in outputs[1:])]
    for got, exact in zip(ys, wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-10, atol=1e-12)

    cotangents = [by_direction(cs[0].numpy(), directions), *(c.numpy() for c in cs[1:])]
    feeds |= {f"c{i}": c for i, c in enumerate(cotangents)}
    names = [f"grad.x{i}" for i in wrt]
    got = map(np.asarray, evaluator(build(case, arrays, ys, symbolic=False)).run(names, feeds))
    for grad, exact in zip(got, expected, strict=True):
        np.testing.assert_allclose(grad, exact, rtol=1e-9, atol=1e-11)

    single = [a if a is None or a.dtype == np.int32 else a.astype(np.float32) for a in arrays]
    model = build(case, single, [y.astype(np.float32) for y in ys], symbolic=False, opset=21)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    got = map(np.asarray, session.run(names, {name: f.astype(np.float32) for name, f in feeds.items()}))
    for grad, exact in zip(got, expected, strict=True):
        np.testing.assert_allclose(grad, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ORDER)
def test_only_the_last_state_is_returned(op):
    """The usual form of a classifier: Y is left out, and the rule has the node return it."""
    module = module_of(op)
    x = torch.tensor(np.random.default_rng(0).standard_normal((TIME, BATCH, INPUTS)), requires_grad=True)
    _, last = module(x)
    h = last[0] if op == "LSTM" else last
    torch.sin(h).sum().backward()

    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="last")
    builder = GraphBuilder(graph)
    values = [builder.input("x", ir.DataType.DOUBLE, ["time", "batch", INPUTS])]
    values += [builder.initializer(ir.tensor(w), name) for w, name in zip(weights(op, module), "wrb", strict=True)]
    attributes = {"hidden_size": HIDDEN} | ({"linear_before_reset": 1} if op == "GRU" else {})
    node = ir.node(op, values, attributes, num_outputs=2)
    none, state = node.outputs
    none.name, state.name = "", "h"
    state.type, state.shape = values[0].type, ir.Shape([1, "batch", HIDDEN])
    graph.append(node)
    dh = builder.op.Cos(state)
    (gradient,) = differentiate(builder.op, [node], {state: dh}, [values[0]]).values()
    builder.add_output(state, "h")
    builder.add_output(gradient, "dx")
    model = evaluator(ir.Model(graph, ir_version=10))
    got, dx = map(np.asarray, model.run(["h", "dx"], {"x": x.detach().numpy()}))
    np.testing.assert_allclose(got, h.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=1e-9, atol=1e-11)
