"""Operators that ONNX defines by a function of other operators, and whether a gradient passes through it."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx

from edgelora_tools.gradients import NON_DIFFERENTIABLE, RULES
from edgelora_tools.normalize import NEWEST_OPSET, OPSET


@cache
def has_differentiable_body(op: str) -> bool:
    """Whether every operator of the definition of `op` has a rule, or none and needs none."""
    body = _body(op)
    if body is None:
        return False
    keys = {("" if node.domain == "ai.onnx" else node.domain, node.op_type) for node in body.node}
    bare = {key for key in keys if key not in RULES and key not in NON_DIFFERENTIABLE}
    return bool(keys & RULES.keys()) and all(domain == "" and has_differentiable_body(name) for domain, name in bare)


def _body(op: str) -> onnx.FunctionProto | None:
    """The function by which ONNX defines `op` for real inputs and its default attributes; None if there is none."""
    schema = _schema(op)
    if schema is None:
        return None
    body = onnx.FunctionProto()
    if schema.has_function:
        return schema.function_body
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= OPSET]
    if not versions or any(attribute.required for attribute in schema.attributes.values()):
        return None
    names = [x.name for x in schema.inputs[: schema.min_input]]
    node = onnx.helper.make_node(op, names, [y.name for y in schema.outputs[: schema.min_output]])
    types = [_example_type(schema, x.type_str).SerializeToString() for x in schema.inputs[: schema.min_input]]
    body.ParseFromString(
        schema.get_context_dependent_function_with_opset_version(max(versions), node.SerializeToString(), types)
    )
    return body


def _schema(op: str) -> Any:
    """The operator as models have it once they are brought to an opset; onnx's stubs lack what a schema has."""
    for opset in (OPSET, NEWEST_OPSET):
        try:
            return onnx.defs.get_schema(op, opset, "")
        except onnx.defs.SchemaError:
            continue
    return None


def _example_type(schema: Any, variable: str) -> onnx.TypeProto:
    allowed = [t for c in schema.type_constraints if c.type_param_str == variable for t in c.allowed_type_strs]
    real = not allowed or "tensor(float)" in allowed
    return onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT if real else onnx.TensorProto.INT64, None)
