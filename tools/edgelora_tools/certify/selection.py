"""Which of ONNX's backend node tests ask for a gradient: read off each model's types and operators."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora_tools.backward import captured
from edgelora_tools.certify.double import REAL, bring_to_float64
from edgelora_tools.gradients import NON_DIFFERENTIABLE, QUANTIZERS, key_of
from edgelora_tools.normalize import NEWEST_OPSET, OPSET, onnx_errors
from edgelora_tools.passes.expand import expand
from edgelora_tools.reference import evaluator

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class NodeTest:
    """A test of onnx.backend.test: `model` and the inputs that it comes with, by name.

    `operator` is (domain, op_type) of what it tests; a test of a function body has `expanded` set.
    """

    name: str
    operator: tuple[str, str]
    expanded: bool
    model: onnx.ModelProto
    inputs: tuple


class Excluded(Exception):
    """The test asks for no gradient; the message says by what property of its model."""


@cache
def node_tests() -> tuple[NodeTest, ...]:
    """Every backend node test that the installed onnx comes with, in the order of their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        given = {test.name: test for test in load_model_tests(kind="node")}
    found = []
    for name, test in sorted(given.items()):
        assert test.model is not None and test.data_sets
        original = re.sub(r"_expanded(_ver\d+)?$", "", name)
        source = given.get(original, test).model
        assert source is not None
        node = source.graph.node[0]
        operator = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        found.append(NodeTest(name, operator, original != name, test.model, tuple(test.data_sets[0][0])))
    return tuple(found)


def prepare(test: NodeTest) -> tuple[ir.Model, Feeds]:
    """The test's model in float64, at an operator set that rules know, expanded, and its inputs by name.

    The shapes and types of all values are those of the test's own data.

    Raises:
        Excluded: no real number reaches a real number through it, or its operators are newer than the newest
            operator set that EdgeLoRA reads.
        ConversionError: it cannot be brought to that operator set.
    """
    _require_real_edges(test.model)
    model = _at_known_opset(test.model)
    model.graph.opset_imports.setdefault("", NEWEST_OPSET)
    expand(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    bring_to_float64(model)
    feeds: Feeds = {}
    for value, given in zip(model.graph.inputs, test.inputs, strict=False):
        array = onnx.numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else given
        feeds[str(value.name)] = np.asarray(array, np.float64) if value.dtype == ir.DataType.DOUBLE else array
    if all(isinstance(array, np.ndarray) for array in feeds.values()):
        model = observed(model, feeds)
    _require_path(model)
    return model, feeds


def _require_real_edges(model: onnx.ModelProto) -> None:
    def real(values) -> bool:
        return any(ir.DataType(v.type.tensor_type.elem_type) in REAL for v in values)

    if not real(model.graph.input):
        raise Excluded("no input is a tensor of real numbers")
    if not real(model.graph.output):
        raise Excluded("no output is a tensor of real numbers")


def _at_known_opset(proto: onnx.ModelProto) -> ir.Model:
    """The model at operator set 21 to 23: converted if older, renumbered if newer and nothing in it is new."""
    versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
    preview = sorted(domain for domain in versions if domain.startswith("ai.onnx.preview"))
    if preview and any(node.domain in preview for node in proto.graph.node):
        raise Excluded(f"its operators are previews ({preview[0]})")
    model = ir.from_proto(proto)
    opset = versions.get("", NEWEST_OPSET)
    if opset > NEWEST_OPSET:
        for node in _all_nodes(proto.graph):
            if node.domain in ("", "ai.onnx") and not _known_form(node):
                raise Excluded(f"its operators or forms of them are newer than operator set {NEWEST_OPSET}")
        model.graph.opset_imports[""] = NEWEST_OPSET
    elif opset < OPSET and "" in versions:
        if not all(_same_at(node, opset, OPSET) for node in _all_nodes(proto.graph)):
            with onnx_errors(f"opset {opset} could not be brought to {OPSET}"):
                model = ir.from_proto(onnx.version_converter.convert_version(proto, OPSET))
        model.graph.opset_imports[""] = OPSET
    return model


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _known_form(node: onnx.NodeProto) -> bool:
    """Whether the newest operator set that EdgeLoRA reads has the node's operator with these inputs and attributes."""
    try:
        schema = onnx.defs.get_schema(node.op_type, NEWEST_OPSET, "")
    except onnx.defs.SchemaError:
        return False
    return len(node.input) <= schema.max_input and all(a.name in schema.attributes for a in node.attribute)


def _same_at(node: onnx.NodeProto, old: int, new: int) -> bool:
    """Whether the node's operator is the same at two operator sets."""
    try:
        schemas = [onnx.defs.get_schema(node.op_type, opset, node.domain) for opset in (old, new)]
    except onnx.defs.SchemaError:
        return False
    return schemas[0].since_version == schemas[1].since_version


def observed(model: ir.Model, feeds: Feeds) -> ir.Model:
    """`model` with the shapes and types that its values have for these inputs; inferred from them inside bodies."""
    for value in model.graph.inputs:
        value.shape = ir.Shape(feeds[str(value.name)].shape)
    values = [y for node in model.graph for y in node.outputs if y.name]
    outputs = list(model.graph.outputs)
    model.graph.outputs[:] = values
    try:
        arrays = evaluator(model).run(None, dict(feeds))
    finally:
        model.graph.outputs[:] = outputs
    for value, array in zip(values, arrays, strict=True):
        if isinstance(array, np.ndarray | np.generic):
            value.shape = ir.Shape(np.shape(array))
            value.type = ir.TensorType(ir.DataType.from_numpy(np.asarray(array).dtype))
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))


def _require_path(model: ir.Model) -> None:
    """Raise Excluded unless a real input reaches a real output through operators that may have a gradient."""
    reached: set[ir.Value] = {x for x in model.graph.inputs if x.dtype in REAL and _is_tensor(x)}
    stops: set[str] = set()
    quantizers: set[str] = set()
    containers: set[str] = set()
    for node in model.graph:
        if not any(x in reached for x in (*node.inputs, *captured(node)) if x is not None):
            continue
        if key_of(node) in NON_DIFFERENTIABLE:
            stops.add(node.op_type)
        elif key_of(node) in QUANTIZERS:
            quantizers.add(node.op_type)
        else:
            reached.update(y for y in node.outputs if y.dtype in REAL and _is_tensor(y))
            containers.update(node.op_type for y in node.outputs if not _is_tensor(y))
    if any(y in reached for y in model.graph.outputs):
        return
    if quantizers:
        raise Excluded("all paths pass a quantizer: its gradient is straight through, not its differences")
    if containers:
        raise Excluded("all paths pass sequences or optional values")
    if stops:
        raise Excluded("all paths end at non-differentiable operators")
    raise Excluded("no real output depends on a real input")


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)
