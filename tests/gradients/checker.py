"""The oracle for gradient rules: float64 central differences along random directions, reference evaluator.

For f(x) = Σ <c, op(x)> and a random direction v, the rule's gradient g must satisfy
<g, v> = df(x + h·v)/dh. A direction touches every element of the input, so a wrong element shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import REAL
from edgelora_tools.reference import evaluator
from tests.gradients.case import Case
from tests.gradients.surrogates import SURROGATES

OPSET = 23
STEP = 1e-6

Arrays = Sequence[np.ndarray | None]


def sample_inputs(case: Case, rng: np.random.Generator) -> list[np.ndarray | None]:
    """The case's inputs, with shapes filled from `rng`."""
    arrays: list[np.ndarray | None] = []
    for position, given in enumerate(case.inputs):
        if given is None or isinstance(given, np.ndarray):
            arrays.append(given)
            continue
        values = np.asarray(rng.standard_normal(given))
        if position in case.positive:
            values = np.abs(values) + case.positive[position]
        if position in case.within:
            values = np.asarray(rng.uniform(*case.within[position], given))
        arrays.append(values)
    return arrays


def wrt_of(case: Case) -> tuple[int, ...]:
    """The input positions that the case differentiates."""
    if case.wrt is not None:
        return case.wrt
    return tuple(i for i, x in enumerate(case.inputs) if isinstance(x, tuple))


def cotangents_of(case: Case) -> tuple[int, ...]:
    """The output positions that receive a cotangent."""
    return case.cotangents if case.cotangents is not None else tuple(range(case.outputs))


def forward(
    case: Case, arrays: Arrays, symbolic: bool = False, opset: int = OPSET
) -> tuple[GraphBuilder, list[ir.Value | None], list[ir.Value]]:
    """The case's node alone: the builder of its graph, the inputs x0…, the outputs y0….

    With `symbolic`, every dimension of a differentiated input is a name of its own.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset, "com.microsoft": 1}, name="case")
    builder = GraphBuilder(graph)
    values: list[ir.Value | None] = []
    for i, array in enumerate(arrays):
        if array is None:
            values.append(None)
        elif i in wrt_of(case):
            shape = [f"x{i}_{axis}" for axis in range(array.ndim)] if symbolic else list(array.shape)
            values.append(builder.input(f"x{i}", ir.DataType.from_numpy(array.dtype), shape))
        else:
            given = builder.initializer(ir.tensor(array, name=f"x{i}"))
            values.append(builder.op.Identity(given) if i in case.computed else given)
    op = builder.opset(case.domain, graph.opset_imports[case.domain])
    bodies = {name: make(builder.op, values) for name, make in case.bodies.items()}
    inputs = values[: len(values) - case.captured]
    made = getattr(op, case.op)(*inputs, _outputs=case.outputs, **case.attributes, **bodies)
    return builder, values, [made] if case.outputs == 1 else list(made)


def run_forward(case: Case, arrays: Arrays, opset: int = OPSET) -> Callable[[Mapping[str, np.ndarray]], Sequence]:
    """The node alone, as a function from the differentiated inputs to its outputs."""
    builder, _, outputs = forward(case, arrays, opset=opset)
    for i, y in enumerate(outputs):
        builder.add_output(y, f"y{i}")
    model = evaluator(ir.Model(builder.graph, ir_version=10), SURROGATES)
    return lambda xs: list(model.run(None, dict(xs)))


def build(case: Case, arrays: Arrays, ys: Arrays, symbolic: bool, opset: int = OPSET) -> ir.Model:
    """A model of the case's node and its backward pass: inputs x0…, c0…; outputs y0…, grad.x0….

    `ys` are the node's outputs for `arrays`: they tell the shapes where inference does not. With
    `symbolic`, a rule sees ranks and nothing else.
    """
    builder, values, outputs = forward(case, arrays, symbolic, opset)
    for i, (y, array) in enumerate(zip(outputs, ys, strict=True)):
        assert array is not None
        y.shape = ir.Shape([f"y{i}_{axis}" for axis in range(array.ndim)] if symbolic else list(array.shape))
        y.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    cotangents = {}
    for i in cotangents_of(case):
        dtype = outputs[i].dtype if outputs[i].dtype in REAL else ir.DataType.FLOAT
        cotangents[outputs[i]] = builder.input(f"c{i}", dtype, outputs[i].shape)
    node = outputs[0].producer()
    assert node is not None
    sources = {i: value for i in wrt_of(case) if (value := values[i]) is not None}
    grads = differentiate(builder.op, [node], cotangents, list(sources.values()))
    for i, y in enumerate(outputs):
        builder.add_output(y, f"y{i}")
    for i, value in sources.items():
        assert value in grads, f"no gradient for input {i}"
        builder.add_output(builder.op.Identity(grads[value]), f"grad.x{i}")
    return ir.Model(builder.graph, ir_version=10)


@dataclass(frozen=True)
class Trial:
    """A case with its inputs, its outputs `ys`, random cotangents, and what finite differences make of them.

    `rises` are (position, direction v, df(x + h·v)/dh), several for each differentiated input.
    """

    case: Case
    arrays: Arrays
    ys: Arrays
    feeds: Mapping[str, np.ndarray]
    rises: Sequence[tuple[int, np.ndarray, float]]


def trial_of(case: Case, seed: int = 0, directions: int = 3) -> Trial:
    """Run the case's node at random inputs and beside them."""
    rng = np.random.default_rng(seed)
    arrays = sample_inputs(case, rng)
    xs = {f"x{i}": x for i in wrt_of(case) if (x := arrays[i]) is not None}
    run = run_forward(case, arrays)
    ys = run(xs)
    cs = {f"c{i}": np.asarray(rng.standard_normal(ys[i].shape)) for i in cotangents_of(case)}
    rises = []
    for i in wrt_of(case):
        for _ in range(directions):
            x = xs[f"x{i}"]
            v = np.asarray(rng.standard_normal(x.shape))
            ahead, behind = (run(xs | {f"x{i}": x + h * v}) for h in (STEP, -STEP))
            rise = (np.sum(cs[f"c{k}"] * (ahead[k] - behind[k])) for k in cotangents_of(case))
            rises.append((i, v, float(sum(rise)) / (2 * STEP)))
    return Trial(case, arrays, ys, xs | cs, rises)


def compare(trial: Trial, symbolic: bool, rtol: float = 1e-5) -> None:
    """Raise AssertionError unless the rule's gradients match the trial's differences."""
    wrt = wrt_of(trial.case)
    model = evaluator(build(trial.case, trial.arrays, trial.ys, symbolic), SURROGATES)
    grads = dict(zip(wrt, model.run([f"grad.x{i}" for i in wrt], dict(trial.feeds)), strict=True))
    for i, v, numeric in trial.rises:
        x, grad = trial.feeds[f"x{i}"], np.asarray(grads[i])
        assert grad.shape == x.shape, f"input {i}: gradient {grad.shape}, input {x.shape}"
        assert grad.dtype == x.dtype, f"input {i}: gradient is {grad.dtype}"
        analytic = float(np.sum(grad * v))
        scale = max(abs(numeric), float(np.linalg.norm(grad)), 1e-3)
        assert abs(numeric - analytic) <= rtol * scale, f"input {i}: rule {analytic}, differences {numeric}"


def check(case: Case, symbolic: bool, seed: int = 0, directions: int = 3, rtol: float = 1e-5) -> None:
    """Raise AssertionError unless the rule's gradients match central differences."""
    compare(trial_of(case, seed, directions), symbolic, rtol)
