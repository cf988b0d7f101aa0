"""Operators that ONNX itself defines by a function of other operators: which they are, and the function."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from edgelora_tools.expansions.registry import uncovered

_STANDARD = ("", "ai.onnx")
_DOMAIN = "edgelora.bodies"
_WHOLE = {"DynamicQuantizeLinear", "SequenceMap"}
"""Operators that stay whole: integers that stand for real numbers, whose written-out steps would end the gradient;
sequences, whose operators carry none."""


def has_body(node: ir.Node) -> bool:
    """Whether ONNX defines the operator by a function of other operators."""
    opset = node.graph.opset_imports.get("") if node.graph is not None else None
    if node.domain not in _STANDARD or node.op_type in _WHOLE or opset is None or not onnx.defs.has(node.op_type, ""):
        return False
    try:
        schema = _schema(node, opset)
    except onnx.defs.SchemaError:
        return False
    return schema.has_function or schema.has_context_dependent_function


def call_body(model: ir.Model, node: ir.Node) -> None:
    """Make the node a call of its definition, which is then inlined.

    Raises:
        NotCovered: there is none for its inputs, or of this opset.
    """
    opset = model.graph.opset_imports[""]
    schema = _schema(node, opset)
    for name, attribute in schema.attributes.items():  # the body refers to its attributes, absent or not
        if name not in node.attributes and attribute.default_value.type:
            node.attributes[name] = ir.from_proto(attribute.default_value)
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= opset]
        body = schema.get_function_with_opset_version(max(versions)) if versions else b""
    else:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        types = [onnx.TypeProto() if x is None else _type_proto(x) for x in node.inputs]
        body = (
            b""
            if not versions
            else schema.get_context_dependent_function_with_opset_version(
                max(versions),
                ir.to_proto(node).SerializeToString(),
                [t.SerializeToString() for t in types],
            )
        )
    if not body:
        raise uncovered("is of a form that ONNX defines no function for")
    proto = onnx.FunctionProto()
    proto.ParseFromString(body)
    proto.domain, proto.name = _DOMAIN, f"{node.op_type}_{len(model.functions)}"
    del proto.output[len(node.outputs) :]  # the definition need not compute what the node does not ask for
    for used in proto.opset_import:  # of an older version; the checker refuses what has changed its form since
        used.version = opset if used.domain in _STANDARD else used.version
    try:
        onnx.checker.check_function(proto, _context(opset))
    except onnx.checker.ValidationError as error:
        raise uncovered(f"is defined by operators of an older opset ({str(error).splitlines()[0]})") from error
    function = ir.from_proto(proto)
    model.functions[function.identifier()] = function
    model.graph.opset_imports.setdefault(proto.domain, 1)
    node.domain, node.op_type = proto.domain, proto.name


def _schema(node: ir.Node, opset: int) -> Any:
    """The operator's schema; onnx's own types do not tell of its functions."""
    return onnx.defs.get_schema(node.op_type, opset, "")


def _context(opset: int) -> onnx.checker.C.CheckerContext:
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": opset}
    return context


def _type_proto(x: ir.Value) -> onnx.TypeProto:
    proto = ir.to_proto(x).type
    if x.dtype is None:
        raise ValueError(f"the type of {x.name!r} is not known")
    return proto
