"""Images of few places are rows, `[images·places, channels]`, where convolutions of one pixel read them, in training.

Such a convolution and its adapter are products of matrices then, of all images at once, and so are their gradients;
sums go to the products. What is computed element by element between them lies so too. Other operators, as convolutions
of more pixels, read and make images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from math import prod

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.frozen import is_frozen, is_real
from edgelora_tools.gradients.nodes import ints_of, operands
from edgelora_tools.gradients.shapes import Dim, axis_of, dims, known_equal, rank, shaped
from edgelora_tools.gradients.windows import image_axes
from edgelora_tools.lowering import DOMAIN, emit_before
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.row_wise import ALONE, TOGETHER

_FEW = 200  # places of an image (docs/decisions/0032)


def is_small(x: ir.Value) -> bool:
    """Whether an image is known to have few places."""
    sizes = () if x.shape is None else dims(x)[2:]
    known = [d for d in sizes if isinstance(d, int)]
    return len(known) == len(sizes) > 0 and prod(known) < _FEW


def is_point(node: ir.Node) -> bool:
    """Whether the node is a convolution of one pixel, at every place, not in groups."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    attributes, kernel = node.attributes, dims(operands(node)[1])[2:]
    moves = set(attributes.get_ints("strides", None) or [1]) != {1} or any(attributes.get_ints("pads", None) or [])
    return set(kernel) == {1} and not moves and attributes.get_int("group", 1) == 1


def images_in_rows(graph: ir.Graph) -> None:
    """Lay small images in rows around convolutions of one pixel, in place. Values must have their shapes."""
    if chosen := _chosen(graph):
        _Rows(graph, chosen).lay()


def _chosen(graph: ir.Graph) -> dict[ir.Node, None]:
    """The nodes that are computed on rows, in order: convolutions, what is element by element beside them, means."""
    chosen = {node for node in graph if _is_product(node)}
    for node in graph if chosen else ():
        first = _first(node)
        if first is not None and is_small(node.outputs[0]) and _is_added(node, chosen):
            chosen |= {node, first}
    candidates = [node for node in graph if _by_element(node)] if chosen else []
    while found := {node for node in candidates if node not in chosen and _is_beside(node, chosen)}:
        chosen |= found
    return {node: None for node in graph if node in chosen or (_made_by(node, chosen) and _is_mean(node))}


def _is_product(node: ir.Node) -> bool:
    """Whether the node is a convolution of small images by frozen real numbers."""
    if not is_point(node) or not is_small(node.outputs[0]):
        return False
    x, w, *_ = operands(node)
    return is_real(w) and _has_known_channels(x)


def _has_known_channels(image: ir.Value) -> bool:
    """Whether the width of an image's rows is known."""
    return isinstance(dims(image)[1], int)


def _made_by(node: ir.Node, nodes: Collection[ir.Node]) -> bool:
    """Whether an input of the node is made by one of `nodes`."""
    return any(x is not None and x.producer() in nodes for x in node.inputs)


def _is_added(node: ir.Node, chosen: Collection[ir.Node]) -> bool:
    """Whether what the node makes is added to what one of the chosen does."""
    return any(reader.op_type == "Add" and _made_by(reader, chosen) for reader, _ in node.outputs[0].uses())


def _first(node: ir.Node) -> ir.Node | None:
    """X ⋆ A, if the node is (X ⋆ A) ⋆ B with kernels that are not frozen."""
    if not is_point(node) or len(node.inputs) > 2:
        return None
    h, b = operands(node)
    first = h.producer()
    if first is None or not is_point(first) or len(first.inputs) > 2 or len(h.uses()) > 1 or h.is_graph_output():
        return None
    x, a = operands(first)
    return None if is_frozen(b) or is_frozen(a) or not _has_known_channels(x) else first


def _by_element(node: ir.Node) -> bool:
    """Whether every element of the output, a small image, is made of those in its place, and of channels' numbers."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ALONE | TOGETHER or len(node.outputs) != 1:
        return False
    y = node.outputs[0]
    if not is_small(y) or not _has_known_channels(y):
        return False
    xs = [x for x in node.inputs if x is not None]
    images = [x for x in xs if x.shape is not None and known_equal(dims(x), dims(y))]
    return bool(images) and all(x in images or _of_channels(x, rank(y)) for x in xs)


def _is_mean(node: ir.Node) -> bool:
    """Whether the node, which reads what is computed on rows, is the mean of an image's places."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("GlobalAveragePool", "ReduceMean"):
        return False
    x, *axes = operands(node)
    along = [axis_of(axis, x) for axis in ints_of(axes[0]) or []] if axes else []
    return sorted(along) == image_axes(x) or node.op_type == "GlobalAveragePool"


def _of_channels(x: ir.Value, axes: int) -> bool:
    """Whether `x` is a number, or one for each channel of an image of so many axes."""
    if x.shape is None:
        return False
    return all(isinstance(d, int) if axis == 1 else d == 1 for axis, d in enumerate(dims(x), axes - rank(x)))


def _is_beside(node: ir.Node, chosen: Collection[ir.Node]) -> bool:
    """Whether the node reads what is computed on rows, or is read there alone."""
    (y,) = node.outputs
    readers = {reader for reader, _ in y.uses()}
    return _made_by(node, chosen) or (
        bool(readers) and not y.is_graph_output() and all(reader in chosen for reader in readers)
    )


class _Rows:
    """The images that lie in rows: by the image, all rows in `flat`, `[images·places, channels]`, and the rows of each
    image in `apart`, `[images, places, channels]`.
    """

    def __init__(self, graph: ir.Graph, chosen: dict[ir.Node, None]) -> None:
        self.graph, self.chosen = graph, chosen
        self.op = GraphBuilder(free_names(graph)).op
        self.flat: dict[ir.Value, ir.Value] = {}
        self.apart: dict[ir.Value, ir.Value] = {}

    def lay(self) -> None:
        """Replace the chosen nodes."""
        paired = {_first(node) for node in self.chosen}
        for node in self.chosen:
            if node not in paired:
                emit_before(self.graph, node, partial(self._replace, node))
        self.graph.remove(list(self.chosen), safe=True)

    def _replace(self, node: ir.Node) -> None:
        old = node.outputs[0]
        readers = [reader for reader, _ in old.uses()]
        if _is_mean(node):
            new = self._mean(node)
        elif node.op_type == "Conv":
            new = self._product(node)
        elif readers and all(map(_is_mean, readers)) and not old.is_graph_output():
            self.apart[old] = shaped(self._element(node, self._apart), _apart_dims(old), old)
            return  # a mean's cotangent is broadcast to the rows of an image
        else:
            new = self._element(node, self._flat)
        if rank(old) > 2:
            self.flat[old] = shaped(new, _flat_dims(old), old)
        if old.is_graph_output() or any(reader not in self.chosen for reader in readers) or rank(old) == 2:
            self._show(old, new)

    def _show(self, old: ir.Value, new: ir.Value) -> None:
        """Give the rows as an image to what reads one."""
        image = self._image(new, old) if rank(old) > 2 else shaped(new, dims(old), old)
        if old.is_graph_output():
            image.name, old.name = old.name, None
        self.flat[image] = new
        old.replace_all_uses_with(image, replace_graph_outputs=True)

    def _product(self, node: ir.Node) -> ir.Value:
        """X·Wᵀ + bias, or an adapter's delta."""
        op = self.op
        if (first := _first(node)) is not None:
            (x, a), b = operands(first), operands(node)[1]
            h = first.outputs[0]
            y, inner = op.builder.opset(DOMAIN, 1).Lora(self._flat(x), _turned(op, a), _turned(op, b), _outputs=2)
            shaped(inner, _flat_dims(h), h)
            return y
        x, w, *bias = operands(node)
        matrix = shaped(op.Squeeze(w, image_axes(w)), dims(w)[:2], w)
        return op.Gemm(self._flat(x), matrix, *bias, transB=1)

    def _element(self, node: ir.Node, laid: Callable[[ir.Value], ir.Value]) -> ir.Value:
        def operand(x: ir.Value | None) -> ir.Value | None:
            if x is None or rank(x) == 0:
                return x
            if known_equal(dims(x), dims(node.outputs[0])):
                return laid(x)
            if x in self.flat:  # the one row of one image of one place
                return self.flat[x]
            return shaped(self.op.Reshape(x, [-1]), [max(d for d in dims(x) if isinstance(d, int))], x)

        made = ir.Node(node.domain, node.op_type, [operand(x) for x in node.inputs], node.attributes.values())
        self.graph.append(made)
        return made.outputs[0]

    def _mean(self, node: ir.Node) -> ir.Value:
        x = operands(node)[0]
        return shaped(self.op.ReduceMean(self._apart(x), [1], keepdims=0), dims(x)[:2], x)

    def _flat(self, x: ir.Value) -> ir.Value:
        if x not in self.flat:
            last = self.op.Transpose(x, perm=[0, *image_axes(x), 1])
            shaped(last, [dims(x)[0], *dims(x)[2:], dims(x)[1]], x)
            self.flat[x] = shaped(self.op.Reshape(last, [-1, dims(x)[1]]), _flat_dims(x), x)
        return self.flat[x]

    def _apart(self, x: ir.Value) -> ir.Value:
        if x not in self.apart:
            sizes = _apart_dims(x)
            self.apart[x] = shaped(self.op.Reshape(self._flat(x), [-1, *sizes[1:]]), sizes, x)
        return self.apart[x]

    def _image(self, rows: ir.Value, like: ir.Value) -> ir.Value:
        batch, channels, *sizes = dims(like)
        apart = shaped(self.op.Reshape(rows, [-1, *sizes, channels]), [batch, *sizes, channels], like)
        order = [0, rank(like) - 1, *(axis - 1 for axis in image_axes(like))]
        return shaped(self.op.Transpose(apart, perm=order), dims(like), like)


def _turned(op: OpBuilder, kernel: ir.Value) -> ir.Value:
    """`[out, in, 1, …]` as `[in, out]`. Squeezed last: else ONNX Runtime makes the gradient's product of a turned H.

    Factors of a kernel's channels multiply what is turned: there they lie along its rows, a third of the time.
    """
    if (found := _of_factors(kernel)) is not None:
        plain, factors = found
        assert factors.const_value is not None
        along = op.builder.initializer(ir.tensor(factors.const_value.numpy().ravel(), name=f"{factors.name}.along"))
        return shaped(op.Mul(_turned(op, plain), along), dims(kernel)[1::-1], kernel)
    turned = shaped(
        op.Transpose(kernel, perm=[1, 0, *image_axes(kernel)]), [*dims(kernel)[1::-1], *dims(kernel)[2:]], kernel
    )
    return shaped(op.Squeeze(turned, image_axes(kernel)), dims(turned)[:2], kernel)


def _of_factors(kernel: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """B and f `[out, 1, 1, …]`, if the kernel is B∘f (fold_batch_norms.py)."""
    node = kernel.producer()
    if node is None or node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
        return None
    plain, factors = operands(node)
    if factors.const_value is None or list(dims(factors)) != [dims(kernel)[0], *[1] * (rank(kernel) - 1)]:
        return None
    return plain, factors


def _flat_dims(image: ir.Value) -> Sequence[Dim]:
    batch, places, channels = _apart_dims(image)
    if places == 1:
        return batch, channels
    rows = batch * places if isinstance(batch, int) else None if batch is None else f"{batch}*{places}"
    return rows, channels


def _apart_dims(image: ir.Value) -> tuple[Dim, int, Dim]:
    batch, channels, *sizes = dims(image)
    return batch, prod(d for d in sizes if isinstance(d, int)), channels
