"""Find the insertion points: the linear products of the base, with stable dotted ids."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgelora.manifest import InsertionPoint

_LAYER = re.compile(r"(?:.*\.)?[^.]+\.(\d+)\.")
_CALL = re.compile(r"_\d+$")  # TorchScript counts the calls of a module
_ANONYMOUS = re.compile(r"onnx::|val_\d|v_\d|/|_|\d+$")


@dataclass(frozen=True)
class Site:
    """Where a point sits in the graph: for each use of its weight, the product and its (biased) output."""

    point: InsertionPoint
    uses: tuple[tuple[ir.Node, ir.Value], ...]


def find_sites(model: ir.Model) -> list[Site]:
    """Every MatMul and Gemm of an activation with a frozen matrix, in the order of the graph.

    A weight that several nodes use under one id (a module called more than once) is one site.
    """
    found: list[tuple[str, ir.Value, list[tuple[ir.Node, ir.Value]]]] = []
    for node in model.graph:
        weight = _frozen_matrix(node)
        if weight is not None:
            output = _biased_output(node)
            path = _module_path(node, weight, output)
            names = (path, _CALL.sub("", path)) if _has_scopes(node) else (path,)
            calls = next((uses for p, w, uses in found if p in names and _same_weight(w, weight)), None)
            if calls is None:
                calls = []
                found.append((path, weight, calls))
            calls.append((node, output))
    sites, taken = [], set()
    for path, weight, uses in found:
        unique, n = path, 1
        while unique in taken:
            n += 1
            unique = f"{path}_{n}"
        taken.add(unique)
        node = uses[0][0]
        assert weight.const_value is not None
        rows, columns = weight.const_value.shape.numpy()
        if node.op_type == "Gemm" and node.attributes.get_int("transB", 0):
            rows, columns = columns, rows
        layer = _LAYER.match(unique + ".")
        point = InsertionPoint(unique, node.op_type, int(rows), int(columns), int(layer[1]) if layer else None)
        sites.append(Site(point, tuple(uses)))
    return sites


def _same_weight(a: ir.Value, b: ir.Value) -> bool:
    """Whether they are one weight: exporters transpose a weight anew for each call of its module."""
    if a is b:
        return True
    first, second = a.const_value, b.const_value
    assert first is not None and second is not None
    return first.shape == second.shape and np.array_equal(first.numpy(), second.numpy())


def _frozen_matrix(node: ir.Node) -> ir.Value | None:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return None
    x, weight = node.inputs[:2]
    if x is None or weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    if x.const_value is not None or node.attributes.get_int("transA", 0):
        return None
    return weight


def _biased_output(node: ir.Node) -> ir.Value:
    """The output of the product, or of the Add that is its bias."""
    (y,) = node.outputs
    uses = y.uses()
    if len(uses) == 1 and not y.is_graph_output():
        ((user, position),) = uses
        other = user.inputs[1 - position] if user.op_type == "Add" else None
        if other is not None and other.const_value is not None and len(other.const_value.shape) <= 1:
            return user.outputs[0]
    return y


def _module_path(node: ir.Node, weight: ir.Value, output: ir.Value) -> str:
    """The module path, from the best source that the exporter left.

    In order: the weight's name, the module scopes of the dynamo exporter, the path that the TorchScript
    exporter writes into node names, the bias's name, the node's name.
    """
    name = str(weight.name)
    if name.endswith(".weight") and not _ANONYMOUS.match(name):
        return name.removesuffix(".weight")
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
        if modules:
            return modules[-1]
    if _has_scopes(node):
        assert node.name is not None
        return _path_of_scopes(node.name.strip("/").split("/")[:-1])
    bias = output.producer()
    for value in bias.inputs if bias is not None and bias is not node else node.inputs[2:3]:
        if value is not None and value.const_value is not None and str(value.name).endswith(".bias"):
            return str(value.name).removesuffix(".bias")
    return _dotted(node.name or name)


def _has_scopes(node: ir.Node) -> bool:
    """Whether the TorchScript exporter wrote the module's path into the node's name."""
    return bool(node.name) and node.name.startswith("/") and node.name.count("/") > 1


def _path_of_scopes(scopes: list[str]) -> str:
    """TorchScript repeats a Sequential's name in its children's: drop a scope that the next one extends."""
    kept = [a for a, b in zip(scopes, [*scopes[1:], ""], strict=True) if not b.startswith(f"{a}.")]
    return ".".join(kept)


def _dotted(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", ".", name).strip(".")
