"""An adapter in the weights of its base, as a plain ONNX model, and the way back.

The model begins as LoRA's inference graph, which computes y + (x·A)·B' at each use of a point. Where y is a product
with a weight W of real numbers, W and the bias become what the adapter's method makes of them, and the sum goes away.
Elsewhere LoRA's sum stays, A and B' are constants: where W is codes, where there is no W (a skip), where it has no
place for A·B' (a convolution in groups, whose adapter reads all channels), and where y has other readers too. A method
that moves the bias alone adds it there. Where tensors of a method are values of the base, the model begins as that
method's inference graph, and they are its constants. Adapters of other methods are refused. Codes of 8 bits
become unsigned, and stay so on the way back: they stand for the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora.adapter import Adapter, absent_adapter, head_names
from edgelora.bundle import Bundle
from edgelora.errors import AdapterError
from edgelora.manifest import LORA_GRAPHS, RECURRENT, InsertionPoint, Manifest
from edgelora.methods.base import BASE_BIAS, BASE_WEIGHT
from edgelora.methods.lora_bias import LORA_BIAS
from edgelora_tools.interop.plain_onnx import forget_origins
from edgelora_tools.interop.products import Product, Slot, Sum, Use, find_product, find_uses
from edgelora_tools.interop.unsigned_weights import unsigned_weights
from edgelora_tools.methods import METHODS
from edgelora_tools.methods.base import Change, Doubles, Merging, per_channel


@dataclass(frozen=True)
class Merged:
    """A plain model; the constants that the adapter changed as they were, by name; the sums that it has for an adapter.

    `beside` are the points where the adapter is in no weight.
    """

    model: ir.Model
    originals: Mapping[str, ir.TensorProtocol]
    sums: tuple[Sum, ...]
    beside: tuple[str, ...]


def merge(bundle: Bundle, adapter: Adapter | None) -> Merged:
    """The model that computes what the bundle does with this adapter, or the base alone.

    Raises:
        AdapterError: the adapter does not fit, its method is no change of weights, the weights of some points (all are
            named) cannot take it, or there is no head and the task has one.
    """
    manifest = bundle.manifest
    if adapter is not None:
        adapter.validate(manifest)
    own, file = ([], manifest.forward) if adapter is None else _own_values(manifest, adapter)
    merging = None if adapter is None else merging_of(adapter)
    if manifest.head is not None and (adapter is None or manifest.head.weight not in adapter.tensors):
        raise AdapterError(f"{manifest.task} needs a head, which comes with an adapter: name one that has a head")
    feeds = absent_adapter(manifest) | ({} if adapter is None else bundle.feeds(adapter))
    joined = set() if adapter is None else set(adapter.targets)
    recurrent = [point for point in manifest.points if point.op in RECURRENT]
    if within := [point.id for point in recurrent if point.id in joined]:
        raise AdapterError(f"the adapter stands in recurrent layers ({', '.join(within)}): it cannot be merged")
    model = ir.load(bundle.verified().path / file)
    graph = model.graph
    make_constant(graph, feeds, set(own), gone=set())
    inputs = {value.name for value in graph.inputs}
    parts: list[_Part] = []
    for point in (p for p in manifest.points if p.input_a in inputs and p not in recurrent):
        uses = tuple(find_uses(graph, point))
        if merging is not None and point.id in joined:
            parts.append(_merge_point(graph, bundle, point, uses, merging(point, feeds)))
        else:
            for use in uses:
                _pass_over(use)
    low_rank = [use for part in parts for use in part.sums if isinstance(use, Use)]
    beside = tuple(part.point.id for part in parts if part.beside)
    if low_rank and adapter is not None and adapter.method.graphs not in (LORA_GRAPHS, LORA_BIAS.graphs):
        raise AdapterError(
            f"the weights at {', '.join(beside)} cannot take the {adapter.method.graphs} adapter: they are codes, or "
            "others read what they give; leave these points out of target_modules, or export it to peft and merge there"
        )
    factors = {n for p in manifest.points for n in (p.input_a, p.input_b)}
    kept = [*(use.point for use in low_rank), *recurrent]
    gone = factors - {n for point in kept for n in (point.input_a, point.input_b)}
    make_constant(graph, feeds, {*factors, *head_names(manifest)}, gone)
    unsigned_weights(graph)
    _tidy(model)
    originals = {name: tensor for part in parts for name, tensor in part.originals.items()}
    originals |= {name: ir.tensor(value, name=name) for name, value in bundle.values(own).items()}
    return Merged(model, originals, tuple(one for part in parts for one in part.sums), beside)


def merging_of(adapter: Adapter) -> Merging:
    """How the adapter's method goes into weights.

    Raises:
        AdapterError: it does not.
    """
    merging = METHODS[adapter.method.graphs].merging
    if merging is None:
        raise AdapterError(
            f"a {adapter.method.graphs} adapter cannot be merged, for it is no change of the base's weights: keep the "
            f"bundle and the adapter{', or export it to peft' if adapter.config.in_peft else ''}"
        )
    return merging


def _own_values(manifest: Manifest, adapter: Adapter) -> tuple[list[str], str]:
    """The inputs of the method's graphs that stand for values of the base; the inference graph to begin with."""
    found = manifest.graph_set(adapter.method.graphs)
    assert found is not None, "the adapter is valid"
    own = [x.name for x in found.inputs if x.neutral is None]
    return own, found.forward if own else manifest.forward


def unmerge(merged: Merged) -> ir.Model:
    """The same model with the base's weights, bit for bit, and no adapter; a head stays."""
    for name, tensor in merged.originals.items():
        value = merged.model.graph.initializers[name]
        value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())
    for one in merged.sums:
        _pass_over(one)
    _tidy(merged.model)
    return merged.model


@dataclass(frozen=True)
class _Part:
    """What became of a point: constants as they were, and the sums for what no constant took, in some of its uses."""

    point: InsertionPoint
    originals: Mapping[str, ir.TensorProtocol]
    sums: tuple[Sum, ...]
    beside: bool


def _merge_point(
    graph: ir.Graph, bundle: Bundle, point: InsertionPoint, uses: Sequence[Use], change: Change | None
) -> _Part:
    """Put a change into the constants of the products at these uses; None, what no weight holds, stays beside them."""
    if change is None:
        return _Part(point, {}, tuple(uses), beside=True)
    products = [find_product(use, change) for use in uses]
    changes = [change if use.factors is None else _behind_norm(change, use.factors, point, bundle) for use in uses]
    originals: dict[str, ir.TensorProtocol] = {}
    for one in dict.fromkeys(changes):
        there = [p for p, own in zip(products, changes, strict=True) if p is not None and own is one]
        originals |= _put_into_weights(graph, point, there, one)
    sums: list[Sum] = []
    for use, product, own in zip(uses, products, changes, strict=True):
        bias = _own_bias(point, product, own)
        if bias is not None:
            sums.append(_with_bias(graph, use, bias))
        elif product is None:
            sums.append(use)
        else:
            _pass_over(use)
    return _Part(point, originals, tuple(sums), beside=None in products)


def _behind_norm(change: Change, factors: Doubles, point: InsertionPoint, bundle: Bundle) -> Change:
    """The change of constants that a normalization has been folded into: its factors times that of the base's own."""
    of_weight, of_bias = change.weight, change.bias

    def weight(old: Doubles) -> Doubles:
        assert of_weight is not None
        name = f"{point.id}.{BASE_WEIGHT}"
        own = bundle.values([name])[name].astype(np.float64)
        return old + factors.reshape(-1, *[1] * (own.ndim - 1)) * (of_weight(own) - own)

    def bias(old: Doubles) -> Doubles:
        assert of_bias is not None
        name = f"{point.id}.{BASE_BIAS}"
        own = bundle.values([name])[name].astype(np.float64) if point.bias else np.zeros(point.out_features)
        return old + factors * (of_bias(own) - own)

    return Change(None if of_weight is None else weight, None if of_bias is None else bias)


def _put_into_weights(
    graph: ir.Graph, point: InsertionPoint, products: Sequence[Product], change: Change
) -> dict[str, ir.TensorProtocol]:
    """Change the weights and biases of these products; returns what each was, by its name now."""
    originals: dict[str, ir.TensorProtocol] = {}
    transposed = any(product.is_transposed for product in products)
    of_weight, of_bias = change.weight, change.bias
    if of_weight is not None:

        def weight(old: Doubles) -> Doubles:
            return of_weight(old.T).T if transposed else of_weight(old)

        originals |= _change(graph, point, [(product.node, 1) for product in products], weight)
    if of_bias is not None:

        def bias(old: Doubles) -> Doubles:
            return of_bias(np.broadcast_to(old.reshape(-1), (point.out_features,)))

        slots = [slot for product in products for slot in product.biases]
        originals |= _change(graph, point, slots, bias, (point.out_features,))
    return originals


def _change(
    graph: ir.Graph,
    point: InsertionPoint,
    slots: Sequence[Slot],
    change: Callable[[Doubles], Doubles],
    shape: tuple[int, ...] | None = None,
) -> dict[str, ir.TensorProtocol]:
    """Change the constants that are read at `slots`; returns what each was, by its name now.

    One that others read too, an embedding or another point, stays for them.
    """
    originals: dict[str, ir.TensorProtocol] = {}
    for value in dict.fromkeys(node.inputs[place] for node, place in slots):
        assert value is not None and value.const_value is not None
        old, new, readers = value.const_value, value, [slot for slot in slots if slot[0].inputs[slot[1]] is value]
        if any(tuple(use) not in readers for use in value.uses()):
            name = _free_name(graph, f"{value.name}.{point.id}")
            new = ir.Value(name=name, shape=value.shape, type=value.type)
            for node, place in readers:
                node.replace_input_with(place, new)
            new.const_value = old
            graph.initializers[name] = new
        originals[str(new.name)] = old
        new.shape = ir.Shape(old.shape.numpy() if shape is None else shape)
        new.const_value = _later(old, change, new.shape, str(new.name))
    return originals


def _later(
    old: ir.TensorProtocol, change: Callable[[Doubles], Doubles], shape: ir.Shape, name: str
) -> ir.TensorProtocol:
    """What `change` makes of a tensor, when it is asked for: a large model's weights are never all in memory."""

    def made() -> ir.TensorProtocol:
        return ir.tensor(change(old.numpy().astype(np.float64)).astype(np.float32), name=name)

    return ir.LazyTensor(made, dtype=ir.DataType.FLOAT, shape=shape, name=name)


def _own_bias(point: InsertionPoint, product: Product | None, change: Change) -> Doubles | None:
    """The bias that a product needs which has none of its own, or none that can be changed; None if it needs none."""
    if change.bias is None or (product is None and change.weight is not None) or (product and product.biases):
        return None
    bias = change.bias(np.zeros(point.out_features))
    return bias if product is None or bias.any() else None


def _with_bias(graph: ir.Graph, use: Use, bias: Doubles) -> Sum:
    """Put a bias in the place of the use's adapter."""
    name = _free_name(graph, f"{use.point.id}.bias")
    array = bias.astype(np.float32).reshape(per_channel(use.point.out_features, use.point))
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.tensor(array, name=name)
    graph.initializers[name] = value
    add = ir.node("Add", [use.base, value])
    total = add.outputs[0]
    total.name, total.shape, total.type = _free_name(graph, f"{use.base.name}.biased"), use.base.shape, use.base.type
    following = use.adapted.producer()
    assert following is not None
    graph.insert_before(following, add)
    _pass_over(Sum(total, use.adapted))
    return Sum(use.base, total)


def _pass_over(one: Sum) -> None:
    """Let the readers of the sum read what is without the adapter."""
    base, adapted = one.base, one.adapted
    name, is_output = adapted.name, adapted.is_graph_output()
    adapted.replace_all_uses_with(base, replace_graph_outputs=True)
    if is_output:
        adapted.name, base.name = f"{name}.adapted", name
        base.shape, base.type = adapted.shape, adapted.type


def make_constant(graph: ir.Graph, feeds: Mapping[str, np.ndarray], names: set[str], gone: set[str]) -> None:
    """Inputs of these names become initializers; those that are `gone`, which nothing reads any more, vanish."""
    sizes: dict[str, int] = {}
    for value in [v for v in graph.inputs if v.name in names]:
        name = str(value.name)
        graph.inputs.remove(value)
        if name in gone:
            continue
        array = np.ascontiguousarray(feeds[name])
        if value.shape is not None:
            sizes |= {str(d.value): n for d, n in zip(value.shape, array.shape, strict=True) if not isinstance(d, int)}
        value.shape = ir.Shape(array.shape)
        value.const_value = ir.tensor(array, name=name)
        graph.initializers[name] = value
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else sizes.get(str(d.value), d) for d in value.shape])


def _tidy(model: ir.Model) -> None:
    common.RemoveUnusedNodesPass()(model)
    forget_origins(model)


def _free_name(graph: ir.Graph, wanted: str) -> str:
    taken = {str(v.name) for node in graph.all_nodes() for v in (*node.inputs, *node.outputs) if v is not None}
    taken |= set(graph.initializers)
    name, n = wanted, 1
    while name in taken:
        n += 1
        name = f"{wanted}_{n}"
    return name
