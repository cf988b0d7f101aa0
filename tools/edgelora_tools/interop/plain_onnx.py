"""A base, alone or with one adapter in its weights, as a plain ONNX model.

The inference graph computes y + (x·A)·B' at each use of a point, y being what the base computes. Where y is a product
with a weight W of real numbers, A·B' goes into W, and the sum away. Elsewhere the sum stays, A and B' are constants:
where W is codes, where there is no W (a skip), where it has no place for A·B' (a convolution in groups, whose adapter
reads all channels), and where y has other readers too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora.adapter import Adapter, head_names
from edgelora.bundle import Bundle
from edgelora.errors import AdapterError, ConversionError
from edgelora.manifest import LORA_GRAPHS, InsertionPoint, Manifest

INLINE_LIMIT = 3 << 29  # bytes of weights; a file of protocol buffers holds 2 GiB
EXTERNAL_FROM = 1024
_VIEWS = ("Reshape", "Flatten", "Identity")
_PRODUCTS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Use:
    """Where the graph adds a point's adapter: `adapted` is `base` plus what A and B' make of x."""

    point: InsertionPoint
    x: ir.Value
    base: ir.Value
    adapted: ir.Value


@dataclass(frozen=True)
class Merged:
    """A plain model; the weights that the adapter changed as they were, by name; where it stayed beside the base."""

    model: ir.Model
    originals: Mapping[str, ir.TensorProtocol]
    beside: tuple[Use, ...]

    @property
    def beside_points(self) -> list[str]:
        """The points whose adapters are constants of the graph."""
        return list(dict.fromkeys(use.point.id for use in self.beside))


def merge(bundle: Bundle, adapter: Adapter | None) -> Merged:
    """The model that computes what the bundle does with this adapter, or the base alone.

    Raises:
        AdapterError: the adapter does not fit or is not LoRA's or VeRA's, or there is no head and the task has one.
    """
    manifest = bundle.manifest
    if adapter is not None:
        adapter.validate(manifest)
        if adapter.method.graphs != LORA_GRAPHS:
            raise AdapterError(
                f"a {adapter.method.graphs} adapter runs in graphs of its own and cannot be merged here: export it to "
                "peft and merge it there (merge_and_unload)"
            )
    if manifest.head is not None and (adapter is None or manifest.head.weight not in adapter.tensors):
        raise AdapterError(f"{manifest.task} needs a head, which comes with an adapter: name one that has a head")
    feeds = {} if adapter is None else adapter.feeds(manifest)
    joined = set() if adapter is None else set(adapter.points)
    model = ir.load(bundle.path / manifest.forward)
    originals: dict[str, ir.TensorProtocol] = {}
    beside: list[Use] = []
    for point in manifest.points:
        uses = list(_uses(model.graph, point))
        products = [_product(use) if point.id in joined else None for use in uses]
        originals |= _put_into_weights(model.graph, point, [p for p in products if p is not None], feeds)
        for use, product in zip(uses, products, strict=True):
            if point.id in joined and product is None:
                beside.append(use)
            else:
                _cut(use)
    _make_constant(model.graph, feeds, {n for u in beside for n in (u.point.input_a, u.point.input_b)}, manifest)
    _tidy(model)
    return Merged(model, originals, tuple(beside))


def unmerge(merged: Merged) -> ir.Model:
    """The same model with the base's weights, bit for bit, and no adapter; a head stays."""
    for name, tensor in merged.originals.items():
        merged.model.graph.initializers[name].const_value = tensor
    for use in merged.beside:
        _cut(use)
    _tidy(merged.model)
    return merged.model


def with_adapter_inputs(bundle: Bundle) -> ir.Model:
    """The inference graph, whose adapter inputs have a default: rank 0, and a head without outputs.

    ONNX Runtime's Python asks for every input that has none before it looks at `RunOptions.add_active_adapter`.
    """
    model = ir.load(bundle.path / bundle.manifest.forward)
    manifest = bundle.manifest
    shapes = {p.input_a: p.shape_a(0) for p in manifest.points} | {p.input_b: p.shape_b(0) for p in manifest.points}
    if manifest.head is not None:
        shapes |= {manifest.head.weight: (0, manifest.head.features), manifest.head.bias: (0,)}
    for value in model.graph.inputs:
        if value.name in shapes:
            value.const_value = ir.tensor(np.zeros(shapes[value.name], np.float32), name=value.name)
            model.graph.initializers[value.name] = value
    _forget_origins(model)
    return model


def save_plain(model: ir.Model, path: Path, external: bool = False) -> list[Path]:
    """Write the model, its weights beside it as `NAME.data` if `external`, or if one file cannot hold them.

    Returns the files.

    Raises:
        ConversionError: the disk refuses, or `path` is a directory.
    """
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data = f"{path.name}.data" if external or total > INLINE_LIMIT else None
    names = [path.name] if data is None else [data, path.name]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ConversionError(f"{path} is a directory: name the file to write")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder)
            if data is None:
                ir.external_data.load_to_model(model)
            ir.save(model, made / path.name, external_data=data, size_threshold_bytes=EXTERNAL_FROM)
            for name in names:
                (made / name).replace(path.parent / name)
    except OSError as error:
        raise ConversionError(f"{path} could not be written: {error.strerror or error}") from error
    return [path.parent / name for name in reversed(names)]


def _uses(graph: ir.Graph, point: InsertionPoint) -> Iterator[Use]:
    """The sums of this point's adapter: Gemm(x·A, B', y), or Add(y, (x·A)·B') also with convolutions."""
    a = _input(graph, point.input_a)
    b = _input(graph, point.input_b)
    for first, _ in a.uses():
        x, h = first.inputs[0], first.outputs[0]
        for second, _ in h.uses():
            if x is None or b not in second.inputs:
                raise ConversionError(
                    f"{point.id}: {second.op_type} reads x·A: another bundle's graph than this version's"
                )
            if second.op_type == "Gemm":
                base, adapted = second.inputs[2], second.outputs[0]
            else:
                (add, _) = next(iter(second.outputs[0].uses()))
                base = next((v for v in add.inputs if v is not second.outputs[0]), None)
                adapted = add.outputs[0]
            assert base is not None
            yield Use(point, x, base, adapted)


def _input(graph: ir.Graph, name: str) -> ir.Value:
    return next(value for value in graph.inputs if value.name == name)


def _put_into_weights(
    graph: ir.Graph, point: InsertionPoint, products: list[ir.Node], feeds: Mapping[str, np.ndarray]
) -> dict[str, ir.TensorProtocol]:
    """Replace the weight W of these products by W + A·B'; returns what each was, by its name now.

    A weight that others read too, an embedding or another point, stays for them.
    """
    originals: dict[str, ir.TensorProtocol] = {}
    for weight in dict.fromkeys(product.inputs[1] for product in products):
        assert weight is not None and weight.const_value is not None
        old, new = weight.const_value, weight
        if any(user not in products for user, _ in weight.uses()):
            name = _free_name(graph, f"{weight.name}.{point.id}")
            new = ir.Value(name=name, shape=weight.shape, type=weight.type)
            for product in products:
                if product.inputs[1] is weight:
                    product.replace_input_with(1, new)
            new.const_value = old
            graph.initializers[name] = new
        originals[str(new.name)] = old
        transposed = any(p.inputs[1] is new and p.attributes.get_int("transB", 0) == 1 for p in products)
        new.const_value = _changed(old, feeds[point.input_a], feeds[point.input_b], transposed, str(new.name))
    return originals


def _changed(old: ir.TensorProtocol, a: np.ndarray, b: np.ndarray, transposed: bool, name: str) -> ir.TensorProtocol:
    """W + A·B', summed in float64 when it is asked for: a large model's weights are never all in memory."""

    def total() -> ir.TensorProtocol:
        delta = _delta(a, b)
        summed = old.numpy().astype(np.float64) + (delta.T if transposed else delta)
        return ir.tensor(summed.astype(np.float32), name=name)

    return ir.LazyTensor(total, dtype=ir.DataType.FLOAT, shape=ir.Shape(old.shape.numpy()), name=name)


def _delta(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A·B' in float64: `[in, out]`, or of a convolution `[out, in, *kernel]`."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    if a.ndim == 2:
        return first @ second
    return np.tensordot(second.reshape(second.shape[:2]), first, 1)


def _product(use: Use) -> ir.Node | None:
    """The frozen product whose output is the use's base, behind views and its bias, if its weight can take an adapter.

    Nothing else may read what lies between.
    """
    value, reader = use.base, use.adapted.producer()
    while (node := value.producer()) is not None:
        if value.is_graph_output() or any(user is not reader for user, _ in value.uses()):
            return None
        following = None
        if node.op_type in _PRODUCTS and node.domain in ("", "ai.onnx"):
            return node if _takes(node, use) else None
        if node.op_type in _VIEWS:
            following = node.inputs[0]
        elif node.op_type == "Add":
            biases = [v for v in node.inputs if v is not None and v.const_value is not None and _is_vector(v)]
            following = next((v for v in node.inputs if v not in biases), None) if len(biases) == 1 else None
        if following is None:
            return None
        value, reader = following, node
    return None


def _takes(product: ir.Node, use: Use) -> bool:
    """Whether x·(W + A·B') is this product with another weight."""
    x, weight = product.inputs[:2]
    if x is None or weight is None or weight.const_value is None or weight.dtype != ir.DataType.FLOAT:
        return False
    if _seen(x) is not _seen(use.x) or use.point.groups != 1:
        return False
    attributes = product.attributes
    if product.op_type == "Gemm" and (attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1.0):
        return False
    shape = _weight_shape(use.point)
    wanted = shape[::-1] if product.op_type == "Gemm" and attributes.get_int("transB", 0) else shape
    return tuple(weight.const_value.shape.numpy()) == wanted


def _weight_shape(point: InsertionPoint) -> tuple[int, ...]:
    if point.kernel:
        return (point.out_features, point.in_features, *point.kernel)
    return (point.in_features, point.out_features)


def _is_vector(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) <= 1


def _seen(value: ir.Value) -> ir.Value:
    """The value before views: a product reads the same rows from each, for its width is the same."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _cut(use: Use) -> None:
    """Let the readers of the sum read what the base computes."""
    base, adapted = use.base, use.adapted
    name, is_output = adapted.name, adapted.is_graph_output()
    adapted.replace_all_uses_with(base, replace_graph_outputs=True)
    if is_output:
        adapted.name, base.name = f"{name}.adapted", name
        base.shape, base.type = adapted.shape, adapted.type


def _make_constant(graph: ir.Graph, feeds: Mapping[str, np.ndarray], kept: set[str], manifest: Manifest) -> None:
    """Adapter inputs become initializers where they are still read, and vanish elsewhere."""
    factors = {n for p in manifest.points for n in (p.input_a, p.input_b)}
    sizes: dict[str, int] = {}
    for value in [v for v in graph.inputs if v.name in factors or v.name in head_names(manifest)]:
        name = str(value.name)
        graph.inputs.remove(value)
        if name in factors and name not in kept:
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
    _forget_origins(model)


def _forget_origins(model: ir.Model) -> None:
    """No names of tools, exporters and source files."""
    model.producer_name, model.producer_version, model.doc_string = "", "", ""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = ""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = ""
        for value in node.outputs:
            value.metadata_props.clear()


def _free_name(graph: ir.Graph, wanted: str) -> str:
    taken = {str(v.name) for node in graph.all_nodes() for v in (*node.inputs, *node.outputs) if v is not None}
    taken |= set(graph.initializers)
    name, n = wanted, 1
    while name in taken:
        n += 1
        name = f"{wanted}_{n}"
    return name
