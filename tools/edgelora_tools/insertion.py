"""Find the places of adapters in the base, with stable dotted ids: linear products, convolutions, normalizations."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgelora.manifest import NORMALIZATIONS, RECURRENT, SKIP_OP, InsertionPoint
from edgelora_tools.composites.quantized import features, is_quantized
from edgelora_tools.frozen import is_frozen, is_real, same_frozen, source_of
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.lowering import DOMAIN

_LAYER = re.compile(r"(?:.*\.)?[^.]+\.(\d+)\.")
_CALL = re.compile(r"_\d+$")  # TorchScript counts the calls of a module
_CODES = re.compile(r"(_quantized|_q|_Q\d\w*)?(\.transposed|\.codes8?)?$")  # what quantization appends to a name
_CONVOLUTIONS = ("Conv", "ConvInteger")
_INTEGER = ("MatMulInteger", "ConvInteger")
_BIAS = {  # the input's number
    "Gemm": 2,
    "Conv": 2,
    "LayerNormalization": 2,
    "QuantizedProduct": 4,
    "BlockProduct": 4,
    "VocabularyProduct": 3,
}
SKIP, SKIP_INTO = "edgelora.skip", "edgelora.into"  # marks of a node: the id of a skip from its input, and where to
POINT = "edgelora.point"  # a mark too: the id of the point at a product, which its name alone would not give
_ANONYMOUS = re.compile(r"onnx::|val_\d|v_\d|/|_|\d+$")


@dataclass(frozen=True)
class Use:
    """A product of real numbers: the node that takes the left factor, the product itself, its (biased) output.

    An integer product has a quantizer before it; any other takes its factor itself.
    """

    reader: ir.Node
    product: ir.Node
    output: ir.Value

    @property
    def weight(self) -> ir.Value | None:
        """The weight, or a normalization's scale, as it lies there; None if it is not one of real numbers."""
        if self.product.op_type in RECURRENT:
            return None
        found = self.product.inputs[1] if len(self.product.inputs) > 1 else None
        return found if is_real(found) else None

    @property
    def is_transposed(self) -> bool:
        """Whether the weight lies as `[out, in]`."""
        return self.product.op_type == "Gemm" and bool(self.product.attributes.get_int("transB", 0))

    @property
    def bias(self) -> ir.Value | None:
        """The frozen vector of real numbers that the output is the sum with; None if there is none."""
        node = self.output.producer()
        assert node is not None
        place = _BIAS.get(node.op_type)
        summands = node.inputs if node is not self.product else node.inputs[place : place + 1] if place else ()
        found = next((x for x in summands if x is not None and is_real(x) and len(dims(x)) == 1), None)
        return found if node.attributes.get_float("beta", 1.0) == 1.0 else None


@dataclass(frozen=True)
class Site:
    """Where a point sits in the graph: for each use of its weight, a `Use`. A normalization's scale is its weight."""

    point: InsertionPoint
    uses: tuple[Use, ...]


def find_sites(model: ir.Model) -> list[Site]:
    """Every product of an activation with a frozen matrix, every frozen convolution and every recurrent layer of frozen
    weights, in the order of the graph.

    A weight that several nodes use under one id (a module called more than once) is one site; where some use it turned,
    they are another. In a graph in which skips are marked (skips.py), these are the sites.
    """
    taken: set[str] = set()
    products = _sites(model, lambda node: _frozen_matrix(node) or _frozen_kernel(node), taken)
    recurrent = _sites(model, _frozen_recurrence, taken)
    if not recurrent:
        return _skips(model) or products
    places = {node: place for place, node in enumerate(model.graph)}
    return _skips(model) or sorted([*products, *recurrent], key=lambda site: places[site.uses[0].reader])


def find_normalizations(model: ir.Model) -> list[Site]:
    """Every layer or RMS normalization of the last axis with a scale of its own, as `find_sites` finds products.

    No id is that of a product.
    """
    return _sites(model, _frozen_scale, {site.point.id for site in find_sites(model)})


def _sites(model: ir.Model, weight_of: Callable[[ir.Node], ir.Value | None], taken: set[str]) -> list[Site]:
    """The sites of the nodes that have a weight, under ids that are not `taken`."""
    found: list[tuple[str, ir.Value, ir.Node, list[Use]]] = []
    for node in model.graph:
        weight = weight_of(node)
        if weight is not None:
            use = _use(node)
            path = module_path(node, weight, use.output)
            names = (path, _CALL.sub("", path)) if _has_scopes(node) else (path,)
            alike = (u for p, w, _, u in found if p in names and same_frozen(w, weight))
            calls = next((uses for uses in alike if uses[0].is_transposed == use.is_transposed), None)
            if calls is None:
                calls = []
                found.append((path, weight, node, calls))
            calls.append(use)
    own_first = sorted(found, key=lambda one: scope_of(one[2]) != one[0])  # a module's weight may be used beside it
    unique_names = {node: node.metadata_props[POINT] for _, _, node, _ in found if POINT in node.metadata_props}
    taken.update(unique_names.values())
    unique_names |= {node: numbered(path, taken) for path, _, node, _ in own_first if node not in unique_names}
    sites: list[Site] = []
    for _, weight, node, uses in found:
        unique = unique_names[node]
        layer = _LAYER.match(unique + ".")
        point = _point(unique, node, weight, int(layer[1]) if layer else None)
        has_bias = uses[0].bias is not None and all(same_frozen(use.bias, uses[0].bias) for use in uses)
        sites.append(Site(replace(point, bias=has_bias), tuple(uses)))
    return sites


def _skips(model: ir.Model) -> list[Site]:
    """The places that are marked: from what a node reads to the value that its mark names."""
    sites = []
    for node in model.graph:
        if (name := node.metadata_props.get(SKIP)) is not None:
            x = node.inputs[0]
            into = next(y for n in model.graph for y in n.outputs if y.name == node.metadata_props[SKIP_INTO])
            assert x is not None
            width, out = (int(str(dims(v)[-1])) for v in (x, into))
            layer = _LAYER.match(name)
            point = InsertionPoint(name, SKIP_OP, width, out, int(layer[1]) if layer else None)
            sites.append(Site(point, (Use(node, node, into),)))
    return sites


def _point(name: str, node: ir.Node, weight: ir.Value, layer: int | None) -> InsertionPoint:
    shape = [d for d in dims(weight) if isinstance(d, int)]
    if is_quantized(node):
        return InsertionPoint(name, node.attributes["product"].as_string(), *features(node), layer)
    if node.op_type in _CONVOLUTIONS:
        groups = node.attributes.get_int("group", 1)
        return InsertionPoint(name, node.op_type, shape[1] * groups, shape[0], layer, tuple(shape[2:]), groups)
    if node.op_type in NORMALIZATIONS:
        return InsertionPoint(name, node.op_type, shape[0], shape[0], layer)
    if node.op_type in RECURRENT:
        directions, gates, width = shape
        return InsertionPoint(name, node.op_type, width, directions * gates, layer)
    rows, columns = reversed(shape) if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) else shape
    return InsertionPoint(name, node.op_type, rows, columns, layer)


def _frozen_matrix(node: ir.Node) -> ir.Value | None:
    if is_quantized(node):
        return node.inputs[1]
    if node.op_type not in ("MatMul", "Gemm", "MatMulInteger") or node.domain not in ("", "ai.onnx"):
        return None
    x, weight = node.inputs[:2]
    if x is None or is_frozen(x) or weight is None or not is_frozen(weight) or node.attributes.get_int("transA", 0):
        return None
    if node.op_type in _INTEGER and not _quantizes_dynamically(x.producer()):
        return None
    return weight if weight.shape is not None and len(weight.shape) == 2 and weight.shape.is_static() else None


def _frozen_kernel(node: ir.Node) -> ir.Value | None:
    if node.op_type not in _CONVOLUTIONS or node.domain not in ("", "ai.onnx"):
        return None
    x, kernel = node.inputs[:2]
    if x is None or is_frozen(x) or kernel is None or not is_frozen(kernel):
        return None
    if node.op_type in _INTEGER and not _quantizes_dynamically(x.producer()):
        return None
    return kernel if kernel.shape is not None and kernel.shape.is_static() else None


def _frozen_recurrence(node: ir.Node) -> ir.Value | None:
    if node.op_type not in RECURRENT or node.domain not in ("", "ai.onnx"):
        return None
    x, weight = node.inputs[:2]
    if x is None or is_frozen(x) or weight is None or not is_real(weight):
        return None
    return weight if weight.shape is not None and weight.shape.is_static() else None


def _frozen_scale(node: ir.Node) -> ir.Value | None:
    if node.op_type not in NORMALIZATIONS or node.domain not in ("", "ai.onnx", DOMAIN):
        return None
    x, scale = node.inputs[:2]
    return scale if x is not None and not is_frozen(x) and is_real(scale) and len(dims(scale)) == 1 else None


def _use(node: ir.Node) -> Use:
    """Where a product's real input is taken, and its real output, which is that of its bias if it has one."""
    x, y = node.inputs[0], node.outputs[0]
    if node.op_type in (*NORMALIZATIONS, *RECURRENT):
        return Use(node, node, y)
    quantizer = x.producer() if x is not None and node.op_type in _INTEGER else None
    if quantizer is None:
        return Use(node, node, _biased(y))
    return Use(quantizer, node, _biased(_scaled(y, quantizer.outputs[1])))


def _quantizes_dynamically(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "DynamicQuantizeLinear"


def _scaled(y: ir.Value, scale: ir.Value) -> ir.Value:
    """What becomes of an integer product: a Cast, and Mul by the scale of the input and by that of the weight."""
    left = [lambda s: s is scale, is_frozen]
    while (user := _only_user(y)) is not None and user.op_type in ("Cast", "Mul"):
        if user.op_type == "Mul":
            factors = [s for s in user.inputs if s is not y]
            product = factors[0].producer() if len(factors) == 1 and factors[0] is not None else None
            if product is not None and product.op_type == "Mul" and scale in product.inputs:
                factors = list(product.inputs)
            kept = [test for test in left if not any(test(s) for s in factors)]
            if len(left) - len(kept) != len(factors):
                break
            left = kept
        y = user.outputs[0]
    return y


def _only_user(y: ir.Value) -> ir.Node | None:
    users = [node for node, _ in y.uses()]
    return users[0] if len(users) == 1 and not y.is_graph_output() else None


def _biased(y: ir.Value) -> ir.Value:
    """The output of the product, or of the Add that is its bias."""
    user = _only_user(y)
    if user is not None and user.op_type == "Add":
        bias = next((x for x in user.inputs if x is not y), None)
        if bias is not None and is_frozen(bias) and bias.shape is not None and len(bias.shape) <= 1:
            return user.outputs[0]
    return y


def module_path(node: ir.Node, weight: ir.Value, output: ir.Value) -> str:
    """The module path, from the best source that the exporter left.

    In order: the weight's name, the module scopes of the dynamo exporter, the path that the TorchScript
    exporter writes into node names, the bias's name, the node's name.
    """
    name = _CODES.sub("", str(source_of(weight).name))
    if name.endswith(".weight") and not _ANONYMOUS.match(name):
        return name.removesuffix(".weight")
    scope = scope_of(node)
    if scope is not None:
        return scope
    bias = output.producer()
    for value in bias.inputs if bias is not None and bias is not node else node.inputs[2:]:
        if value is not None and value.const_value is not None and str(value.name).endswith(".bias"):
            return str(value.name).removesuffix(".bias")
    return _dotted(node.name or name)


def numbered(path: str, taken: set[str]) -> str:
    """The path, with the first number from 2 that is free if it is taken; it is taken then."""
    unique, n = path, 1
    while unique in taken:
        n += 1
        unique = f"{path}_{n}"
    taken.add(unique)
    return unique


def scope_of(node: ir.Node) -> str | None:
    """The path of the module that the exporter says the node is of."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope] if scopes else []
    if modules:
        return modules[-1]
    if _has_scopes(node):
        assert node.name is not None
        return _path_of_scopes(node.name.strip("/").split("/")[:-1])
    return None


def _has_scopes(node: ir.Node) -> bool:
    """Whether the TorchScript exporter wrote the module's path into the node's name."""
    return bool(node.name) and node.name.startswith("/") and node.name.count("/") > 1


def _path_of_scopes(scopes: list[str]) -> str:
    """TorchScript repeats a Sequential's name in its children's: drop a scope that the next one extends."""
    kept = [a for a, b in zip(scopes, [*scopes[1:], ""], strict=True) if not b.startswith(f"{a}.")]
    return ".".join(kept)


def _dotted(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", ".", name).strip(".")
