"""The oracle for gradient rules: float64 central differences along random directions, reference evaluator.

For f(x) = Σ <c, op(x)> and a random direction v, the rule's gradient g must satisfy
<g, v> = df(x + h·v)/dh. A direction touches every element of the input, so a wrong element shows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnxscript import GraphBuilder

from edgelora_tools.backward import differentiate
from tests.gradients.cases import Case

OPSET = 23
STEP = 1e-6


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
        arrays.append(values)
    return arrays


def wrt_of(case: Case) -> tuple[int, ...]:
    """The input positions that the case differentiates."""
    if case.wrt is not None:
        return case.wrt
    return tuple(i for i, x in enumerate(case.inputs) if isinstance(x, tuple))


def build(case: Case, arrays: list[np.ndarray | None], symbolic: bool) -> ir.Model:
    """A model of the case's node and its backward pass: inputs x0…, c0…; outputs y0…, grad.x0….

    With `symbolic`, every dimension of a differentiated input is a name of its own, so that the rule
    sees ranks and nothing else.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, "com.microsoft": 1}, name="case")
    builder = GraphBuilder(graph)
    op = builder.op
    wrt = wrt_of(case)
    values: list[ir.Value | None] = []
    for i, array in enumerate(arrays):
        if array is None:
            values.append(None)
        elif i in wrt:
            shape = [f"x{i}_{axis}" for axis in range(array.ndim)] if symbolic else list(array.shape)
            values.append(builder.input(f"x{i}", ir.DataType.from_numpy(array.dtype), shape))
        else:
            values.append(builder.initializer(ir.tensor(array, name=f"x{i}")))
    made = getattr(builder.opset(case.domain, graph.opset_imports[case.domain]), case.op)(
        *values, _outputs=case.outputs, **case.attributes
    )
    outputs = [made] if case.outputs == 1 else list(made)
    node = outputs[0].producer()
    assert node is not None
    if symbolic:
        _forget_sizes(outputs)
    cotangents = {}
    for i in case.cotangents if case.cotangents is not None else range(case.outputs):
        shape = None if outputs[i].shape is None else list(outputs[i].shape)
        cotangents[outputs[i]] = builder.input(f"c{i}", ir.DataType.DOUBLE, shape)
    sources = [v for i in wrt if (v := values[i]) is not None]
    grads = differentiate(op, [node], cotangents, sources)
    for i in wrt:
        value = values[i]
        assert value is not None
        assert value in grads, f"no gradient for input {i}"
    for i, y in enumerate(outputs):
        builder.add_output(y, f"y{i}")
    for i in wrt:
        value = values[i]
        assert value is not None
        builder.add_output(op.Identity(grads[value]), f"grad.x{i}")
    return ir.Model(graph, ir_version=10)


def _forget_sizes(outputs: list[ir.Value]) -> None:
    """Replace what inference says about the outputs' sizes by names, one a dimension."""
    for i, y in enumerate(outputs):
        if y.shape is not None:
            y.shape = ir.Shape([f"y{i}_{axis}" for axis in range(len(y.shape))])


def check(case: Case, symbolic: bool, seed: int = 0, directions: int = 3, rtol: float = 1e-5) -> None:
    """Raise AssertionError unless the rule's gradients match central differences."""
    rng = np.random.default_rng(seed)
    arrays = sample_inputs(case, rng)
    wrt = wrt_of(case)
    model = ReferenceEvaluator(ir.to_proto(build(case, arrays, symbolic)))
    active = case.cotangents if case.cotangents is not None else tuple(range(case.outputs))

    xs = {f"x{i}": arrays[i] for i in wrt}
    run = _forward_only(case, arrays, [f"y{i}" for i in active])
    ys = run(xs)
    cs = {f"c{i}": np.asarray(rng.standard_normal(y.shape)) for i, y in zip(active, ys, strict=True)}
    grads = model.run([f"grad.x{i}" for i in wrt], xs | cs)
    for i, grad in zip(wrt, grads, strict=True):
        x = xs[f"x{i}"]
        grad = np.asarray(grad)
        assert grad.shape == x.shape, f"input {i}: gradient {grad.shape}, input {x.shape}"
        assert grad.dtype == x.dtype, f"input {i}: gradient is {grad.dtype}"
        for _ in range(directions):
            v = np.asarray(rng.standard_normal(x.shape))
            ahead = run(xs | {f"x{i}": x + STEP * v})
            behind = run(xs | {f"x{i}": x - STEP * v})
            numeric = sum(float(np.sum(c * (a - b))) for c, a, b in zip(cs.values(), ahead, behind, strict=True)) / (
                2 * STEP
            )
            analytic = float(np.sum(grad * v))
            scale = max(abs(numeric), float(np.linalg.norm(grad)), 1e-3)
            assert abs(numeric - analytic) <= rtol * scale, f"input {i}: rule {analytic}, differences {numeric}"


def _forward_only(case: Case, arrays: list[np.ndarray | None], names: list[str]):
    """The node alone, as a function from the differentiated inputs to its outputs."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, "com.microsoft": 1}, name="forward")
    builder = GraphBuilder(graph)
    values = []
    for i, array in enumerate(arrays):
        if array is None:
            values.append(None)
        elif i in wrt_of(case):
            values.append(builder.input(f"x{i}", ir.DataType.from_numpy(array.dtype), list(array.shape)))
        else:
            values.append(builder.initializer(ir.tensor(array, name=f"x{i}")))
    made = getattr(builder.opset(case.domain, graph.opset_imports[case.domain]), case.op)(
        *values, _outputs=case.outputs, **case.attributes
    )
    for i, y in enumerate([made] if case.outputs == 1 else made):
        builder.add_output(y, f"y{i}")
    model = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10)))
    return lambda xs: model.run(names, xs)
