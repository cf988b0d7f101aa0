"""Small networks written by hand, each operator as its opset spells it: no torch, no exporter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, VOCABULARY, POSITIONS = 16, 2, 31, 512

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Net:
    """Builds a graph node by node; values are names."""

    def __init__(self, opset: int, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._count = 0

    def __call__(self, op_type: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        self._count += 1
        made = [f"{op_type.lower()}_{self._count}_{i}" for i in range(outputs)]
        node = helper.make_node(op_type, list(inputs), made, name=name or f"{op_type}_{self._count}", **attributes)
        self.nodes.append(node)
        return made[0] if outputs == 1 else made

    def const(self, value: Any, dtype: Any = np.float32, node: bool = False) -> str:
        """A constant: an initializer, or (`node`) a Constant node."""
        array = np.asarray(value, dtype)
        if node:
            return self("Constant", value=numpy_helper.from_array(array))
        self._count += 1
        name = f"const_{self._count}"
        self.weights[name] = array
        return name

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        factor = scale if scale is not None else 1 / math.sqrt(shape[0])
        self.weights[name] = (self.rng.standard_normal(shape) * factor).astype(np.float32)
        return name

    # Operators whose axes moved from attribute to input.

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        return self._axes("Unsqueeze", x, axes, since=13)

    def squeeze(self, x: str, axes: Sequence[int]) -> str:
        return self._axes("Squeeze", x, axes, since=13)

    def reduce_sum(self, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        return self._axes("ReduceSum", x, axes, since=13, keepdims=keepdims)

    def reduce_mean(self, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        return self._axes("ReduceMean", x, axes, since=18, keepdims=keepdims)

    def _axes(self, op_type: str, x: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        if self.opset < since:
            return self(op_type, x, axes=list(axes), **attributes)
        return self(op_type, x, self.const(axes, np.int64), **attributes)

    def split(self, x: str, parts: Sequence[int], axis: int) -> list[str]:
        if self.opset < 13:
            return self("Split", x, outputs=len(parts), axis=axis, split=list(parts))
        return self("Split", x, self.const(parts, np.int64), outputs=len(parts), axis=axis)

    def softmax(self, x: str) -> str:
        return self("Softmax", x, axis=-1)  # on the last axis both semantics agree

    def gelu(self, x: str, operator: bool, tanh: bool = False) -> str:
        if operator:
            return self("Gelu", x, approximate="tanh" if tanh else "none")
        if tanh:
            inner = self("Add", x, self("Mul", self("Pow", x, self.const(3.0)), self.const(0.044715)))
            bell = self("Tanh", self("Mul", inner, self.const(math.sqrt(2 / math.pi))))
        else:
            bell = self("Erf", self("Div", x, self.const(math.sqrt(2.0))))
        return self("Mul", self("Mul", x, self("Add", bell, self.const(1.0))), self.const(0.5))

    def layer_norm(self, x: str, name: str, operator: bool) -> str:
        scale, bias = self.weight(f"{name}.weight", WIDTH, scale=1.0), self.weight(f"{name}.bias", WIDTH, scale=0.1)
        if operator:
            return self("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
        deviation = self("Sub", x, self.reduce_mean(x, [-1]))
        variance = self.reduce_mean(self("Pow", deviation, self.const(2.0)), [-1])
        normal = self("Div", deviation, self("Sqrt", self("Add", variance, self.const(1e-5))))
        return self("Add", self("Mul", normal, scale), bias)

    def linear(self, x: str, name: str, inner: int, outer: int, bias: bool = True) -> str:
        y = self("MatMul", x, self.weight(f"{name}.weight", inner, outer), name=f"/{name}/MatMul")
        return self("Add", y, self.weight(f"{name}.bias", outer, scale=0.1)) if bias else y

    def gemm(self, x: str, name: str, inner: int, outer: int, transposed: bool) -> str:
        shape = (outer, inner) if transposed else (inner, outer)
        weight, bias = self.weight(f"{name}.weight", *shape), self.weight(f"{name}.bias", outer, scale=0.1)
        return self("Gemm", x, weight, bias, transB=int(transposed))

    def model(
        self,
        inputs: Sequence[tuple[str, int, Sequence[int | str | None]]],
        outputs: Sequence[tuple[str, int, Sequence[int | str | None] | None]],
        check: bool = True,
    ) -> onnx.ModelProto:
        """The model; `outputs` name values that were built."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(*i) for i in inputs],
            [helper.make_tensor_value_info(*o) for o in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=min(10, _ir_version(self.opset)))
        if check:
            onnx.checker.check_model(model)
        return model

    def output(self, x: str, name: str) -> str:
        return self.rename(self("Identity", x), name)

    def rename(self, x: str, name: str) -> str:
        for node in self.nodes:
            node.output[:] = [name if y == x else y for y in node.output]
        return name


def _ir_version(opset: int) -> int:
    return helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def tokens(batch: int | str | None = "batch", length: int | str | None = "sequence", dtype: int = INT64) -> list[Any]:
    """The inputs of the transformer."""
    return [("input_ids", dtype, [batch, length]), ("attention_mask", dtype, [batch, length])]


HIDDEN = ("last_hidden_state", FLOAT, ["batch", "sequence", WIDTH])
POOLED = ("pooler_output", FLOAT, ["batch", WIDTH])


def transformer(
    opset: int,
    layer_norm: bool | None = None,
    gelu: bool | None = None,
    tanh: bool = False,
    layers: int = 1,
    inputs: list[Any] | None = None,
    pooler: bool = True,
) -> onnx.ModelProto:
    """A BERT-like encoder in the opset's own spelling; `layer_norm` and `gelu` say whether the operators are used."""
    net = encoder(opset, layer_norm, gelu, tanh, layers, pooler)
    return net.model(inputs or tokens(), [HIDDEN, POOLED] if pooler else [HIDDEN])


def encoder(
    opset: int,
    layer_norm: bool | None = None,
    gelu: bool | None = None,
    tanh: bool = False,
    layers: int = 1,
    pooler: bool = True,
) -> Net:
    net = Net(opset)
    norm_operator = opset >= 17 if layer_norm is None else layer_norm
    gelu_operator = opset >= 20 if gelu is None else gelu
    words = net("Gather", net.weight("embeddings.word.weight", VOCABULARY, WIDTH, scale=1.0), "input_ids")
    length = net("Gather", net("Shape", "input_ids"), net.const(1, np.int64), axis=0)
    positions = net("Range", net.const(0, np.int64), length, net.const(1, np.int64))
    places = net("Gather", net.weight("embeddings.position.weight", POSITIONS, WIDTH, scale=0.5), positions)
    x = net.layer_norm(net("Add", words, net.unsqueeze(places, [0])), "embeddings.norm", norm_operator)
    mask = net.unsqueeze(net("Cast", "attention_mask", to=FLOAT), [1, 2])
    bias = net("Mul", net("Sub", net.const(1.0), mask), net.const(-10000.0))
    for layer in range(layers):
        x = block(net, x, bias, f"encoder.layer.{layer}", norm_operator, gelu_operator, tanh)
    net.output(x, "last_hidden_state")
    if pooler:
        first = net("Gather", x, net.const(0, np.int64), axis=1)
        net.output(net("Tanh", net.gemm(first, "pooler.dense", WIDTH, WIDTH, transposed=True)), "pooler_output")
    return net


def block(net: Net, x: str, bias: str, at: str, norm_operator: bool, gelu_operator: bool, tanh: bool) -> str:
    """Attention by a fused projection and Split, dropouts, a feed-forward part half MatMul and half Gemm."""
    leading = net("Shape", x)
    batch = net.unsqueeze(net("Gather", leading, net.const(0, np.int64), axis=0), [0])
    length = net.unsqueeze(net("Gather", leading, net.const(1, np.int64), axis=0), [0])
    size = [net.const([n], np.int64) for n in (HEADS, WIDTH // HEADS, WIDTH)]

    def heads(y: str, perm: Sequence[int]) -> str:
        shape = net("Concat", batch, length, size[0], size[1], axis=0)
        return net("Transpose", net("Reshape", y, shape), perm=list(perm))

    both = net.linear(x, f"{at}.attention.query_key", WIDTH, 2 * WIDTH)
    query, key = net.split(both, [WIDTH, WIDTH], axis=2)
    value = net.linear(x, f"{at}.attention.value", WIDTH, WIDTH, bias=False)
    scores = net("MatMul", heads(query, (0, 2, 1, 3)), heads(key, (0, 2, 3, 1)))
    scores = net("Add", net("Div", scores, net.const(math.sqrt(WIDTH / HEADS))), bias)
    share = dropout(net, net.softmax(scores))
    mixed = net("Transpose", net("MatMul", share, heads(value, (0, 2, 1, 3))), perm=[0, 2, 1, 3])
    mixed = net("Reshape", mixed, net("Concat", batch, length, size[2], axis=0))
    out = dropout(net, net.linear(mixed, f"{at}.attention.output", WIDTH, WIDTH))
    x = net.layer_norm(net("Add", x, out), f"{at}.attention.norm", norm_operator)
    wide = net.gelu(net.linear(x, f"{at}.up", WIDTH, 2 * WIDTH), gelu_operator, tanh)
    wide = net("Clip", wide, net.const(-8.0), net.const(8.0))
    rows = net("Reshape", wide, net.const([-1, 2 * WIDTH], np.int64))
    down = net.gemm(rows, f"{at}.down", 2 * WIDTH, WIDTH, transposed=False)
    down = net("Reshape", down, leading)
    gate = net.reduce_mean(net.reduce_sum(down, [-1], keepdims=1), [1], keepdims=1)
    down = net("Add", down, net("Tanh", net.unsqueeze(net.squeeze(gate, [1]), [1])))
    return net.layer_norm(net("Add", x, down), f"{at}.norm", norm_operator)


def dropout(net: Net, x: str) -> str:
    return net("Dropout", x, ratio=0.1) if net.opset < 12 else net("Dropout", x, net.const(0.1))


def tokens_of(batch: int, length: int, seed: int = 0, dtype: Any = np.int64) -> dict[str, np.ndarray]:
    """Ids and a mask with padding on the right in every row but the first."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), dtype)
    for row in range(1, batch):
        mask[row, max(1, length - row) :] = 0
    return {"input_ids": rng.integers(1, VOCABULARY, (batch, length)).astype(dtype), "attention_mask": mask}


def perceptron(
    opset: int = 17, build: Callable[[Net, str], str] | None = None, width: int = WIDTH, output: int = 4
) -> onnx.ModelProto:
    """x `[batch, width]` -> first -> `build` -> second -> y `[batch, output]`."""
    net = Net(opset)
    x = net.linear("x", "first", width, width)
    x = build(net, x) if build else net("Tanh", x)
    net.output(net.linear(x, "second", width, output), "y")
    return net.model([("x", FLOAT, ["batch", width])], [("y", FLOAT, ["batch", output])], check=False)


def tower(width: int, depth: int) -> onnx.ModelProto:
    """A perceptron of so many layers of one width between its two: its size is that of their weights."""

    def build(net: Net, x: str) -> str:
        for layer in range(depth):
            x = net("Tanh", net.linear(x, f"layer{layer}", width, width))
        return x

    return perceptron(build=build, width=width, output=8)


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx", external: bool = False) -> Path:
    """Write the model, its weights beside it if `external`."""
    path = folder / name
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=64)
    else:
        onnx.save(model, path)
    return path
