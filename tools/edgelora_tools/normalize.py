"""The normal form: one opset, float32, no functions, no dead nodes, every weight an initializer.

Gradient rules and insertion points see this form alone. What cannot be brought into it is refused by
name before anything is written.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer, rewriter, version_converter
from onnxscript.rewriter.rules import common as rules

from edgelora.errors import ConversionError
from edgelora_tools.frozen import decodes
from edgelora_tools.passes.expand import expand, foreign, learn_types
from edgelora_tools.passes.fuse_patterns import fuse_patterns
from edgelora_tools.passes.keep_codes import keep_codes
from edgelora_tools.passes.own_outputs import own_outputs
from edgelora_tools.passes.rotary_tables import repeat_rotary_tables
from edgelora_tools.passes.unsigned_codes import unsigned_codes

OLDEST_OPSET, OPSET, NEWEST_OPSET = 11, 21, 23
_FOLD_LIMIT = 1 << 40
_LEFT_OUT = (
    rules.fuse_batchnorm_into_conv_rule,  # an adapter stands between the two: passes/fold_batch_norms.py
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.slice_split_rule,  # tries every pair of slices: quadratic in the size of the graph
)
_REWRITES = tuple(rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule not in _LEFT_OUT)
_ROUNDS = 4
_HIDDEN = "edgelora.hidden"  # the domain of operators that ONNX's converter does not know, while it runs
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_STORAGE = {"Cast", "CastLike", "Identity", "Transpose", "Reshape", "Constant"}


def normalize(model: ir.Model, fuse: bool = True) -> ir.Model:
    """Bring `model` into the normal form, in place, and return it. An output that is an input is left out.

    Raises:
        ConversionError: an opset outside 11 to 23, a graph that ONNX itself calls invalid, or one that returns its
            inputs alone.
    """
    _leave_out_inputs(model)
    outputs = [str(value.name) for value in model.graph.outputs]
    _lift_weights(model)
    model = _bring_to_opset(model)
    bring_to_float32(model)
    expand(model)
    repeat_rotary_tables(model)
    _simplify(model)
    keep_codes(model)
    unsigned_codes(model)
    if fuse:
        fuse_patterns(model)
        _simplify(model)
    _name_everything(model, outputs)
    return model


def _leave_out_inputs(model: ir.Model) -> None:
    """What returns an input as it is computes nothing, and shares a name that two values of a graph cannot have."""
    outputs = model.graph.outputs
    made = [value for value in outputs if not value.is_graph_input()]
    if outputs and not made:
        names = ", ".join(str(value.name) for value in outputs)
        raise ConversionError(f"the model returns its inputs alone ({names}): there is nothing to adapt")
    outputs[:] = made


def _lift_weights(model: ir.Model) -> None:
    """Weights in Constant nodes become initializers; initializers are no inputs."""
    common.InlinePass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    common.RemoveInitializersFromInputsPass()(model)


def _bring_to_opset(model: ir.Model) -> ir.Model:
    opset = model.graph.opset_imports.get("") or model.graph.opset_imports.get("ai.onnx")
    if opset is None or not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ConversionError(
            f"the model uses ONNX opset {opset}; EdgeLoRA reads {OLDEST_OPSET} to {NEWEST_OPSET}: export it again"
        )
    model.graph.opset_imports[""] = opset
    if opset >= OPSET:
        return model
    with _quiet():
        if opset < 18:
            _convert_by_onnx(model, OPSET)
        else:
            version_converter.convert_version(model, OPSET, fallback=True)
    if model.graph.opset_imports[""] != OPSET:
        raise ConversionError(f"opset {opset} could not be brought to {OPSET}: export the model at opset {OPSET}")
    return model


def _convert_by_onnx(model: ir.Model, opset: int) -> None:
    """ONNX's own converter, with the weights held back: it copies what it is given, several times.

    It infers nothing for operators that ONNX does not define, and needs ranks after them: ONNX Runtime tells these.
    """
    graph = model.graph
    others = [node for node in graph.all_nodes() if foreign(node) or not _is_defined(node, graph.opset_imports[""])]
    if others:
        learn_types(model)
    told = {y.name for node in others for y in node.outputs}
    hidden = [node for node in others if node.domain in ("", "ai.onnx")]
    for node in hidden:
        node.domain = _HIDDEN
        graph.opset_imports[_HIDDEN] = 1
    kept = {v.name: v for v in graph.initializers.values() if v.const_value is not None and v.const_value.nbytes > 1024}
    inputs = list(graph.inputs)
    for value in kept.values():
        graph.initializers.pop(str(value.name))
        graph.inputs.append(value)
    try:
        with onnx_errors(f"opset {graph.opset_imports['']} could not be brought to {opset}"):
            proto = ir.to_proto(model)
            known = [value for value in proto.graph.value_info if value.name in told]
            del proto.graph.value_info[:]
            proto.graph.value_info.extend(known)
            converted = ir.from_proto(onnx.version_converter.convert_version(proto, opset))
    finally:
        graph.inputs[:] = inputs
        for value in kept.values():
            graph.register_initializer(value)
    for value in list(converted.graph.inputs):
        original = kept.get(value.name)
        if original is not None:
            value.const_value = original.const_value
            converted.graph.inputs.remove(value)
            converted.graph.register_initializer(value)
    for node in converted.graph.all_nodes():
        node.domain = "" if node.domain == _HIDDEN else node.domain
    converted.graph.opset_imports.pop(_HIDDEN, None)
    _restore_metadata(converted.graph, graph)
    model.graph = converted.graph


def _is_defined(node: ir.Node, opset: int) -> bool:
    """Whether ONNX has the operator at this opset; ONNX Runtime takes some of its default domain at any."""
    return node.domain not in ("", "ai.onnx") or onnx.defs.has(node.op_type, opset, "")


def _restore_metadata(new: ir.Graph, old: ir.Graph) -> None:
    """The converter drops metadata; module paths are found through the outputs' names."""
    known = {y.name: node for node in old.all_nodes() for y in node.outputs}
    for node in new.all_nodes():
        original = known.get(node.outputs[0].name) if node.outputs else None
        if original is not None:
            node.metadata_props.update(original.metadata_props)
            node.name = node.name or original.name


def computes_in_half(model: ir.Model) -> bool:
    """Whether the model does arithmetic in half precision, rather than only keep weights in it."""
    edges = (*model.graph.inputs, *model.graph.outputs)
    used = (x for graph in model.graphs() for node in graph if node.op_type not in _STORAGE for x in node.inputs)
    return any(x is not None and x.dtype in _HALF for x in (*edges, *used))


def bring_to_float32(model: ir.Model) -> None:
    """Half precision becomes float32 everywhere: CPU kernels compute in float32, and gradients need it.

    So does a model whose inputs or outputs are float64; double precision inside a graph is left alone.
    """
    edges = {x.dtype for x in (*model.graph.inputs, *model.graph.outputs)}
    others = (*_HALF, ir.DataType.DOUBLE) if ir.DataType.DOUBLE in edges else _HALF
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in others:
                narrowed = value.const_value.numpy().astype(np.float32)
                value.const_value = ir.tensor(narrowed, name=value.name)
                value.dtype = ir.DataType.FLOAT
        for value in (*graph.inputs, *(y for node in graph for y in node.outputs)):
            if value.dtype in others:
                value.dtype = ir.DataType.FLOAT
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if name in ("to", "dtype") and attribute.type == ir.AttributeType.INT and attribute.value in others:
                    node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
                elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in others:
                    narrowed = ir.tensor(attribute.value.numpy().astype(np.float32))
                    node.attributes[name] = ir.AttrTensor(name, narrowed)


def _simplify(model: ir.Model) -> None:
    """Fold constants of any size and apply the library's rewrites; the codes of quantized weights stay codes.

    Equal weights stay apart: their names tell the modules that they belong to. A BatchNormalization stays
    behind its convolution until adapters stand between them (passes/fold_batch_norms.py).
    """
    with _quiet():
        for _ in range(_ROUNDS):
            folded = optimizer.fold_constants(
                model,
                onnx_shape_inference=True,
                input_size_limit=_FOLD_LIMIT,
                output_size_limit=_FOLD_LIMIT,
                should_fold=lambda node: False if decodes(node) else None,
            )
            rewriter.rewrite(model, _REWRITES)
            _adopt_constants(model)
            if not folded.modified:
                break
    _remove_dropout(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _share_small_constants(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.IdentityEliminationPass()(model)
    own_outputs(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def _adopt_constants(model: ir.Model) -> None:
    """Constants that a rewrite made and, having named several alike, left outside the graph become initializers."""
    known = model.graph.initializers
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is None or value.const_value is None or value.producer() is not None or value.graph is not None:
                continue
            name, n = str(value.name), 1
            while value.name in known:
                n += 1
                value.name = f"{name}_{n}"
            model.graph.register_initializer(value)


def _share_small_constants(model: ir.Model) -> None:
    """Equal scalars and integer lists become one, so that equal nodes can; weights and biases name their modules."""
    first: dict[tuple[str, bytes], ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or len(tensor.shape) > 1:
            continue
        if tensor.dtype.is_integer() or len(tensor.shape) == 0:
            kept = first.setdefault((f"{tensor.dtype} {tensor.shape}", tensor.tobytes()), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                model.graph.initializers.pop(str(value.name))


def _remove_dropout(model: ir.Model) -> None:
    """Inference: Dropout is the identity. (A LoRA's own dropout is put in at the insertion point.)"""
    for node in list(model.graph):
        if node.op_type == "Dropout" and not (len(node.outputs) > 1 and node.outputs[1].uses()):
            x = node.inputs[0]
            assert x is not None
            node.outputs[0].replace_all_uses_with(x, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)


def _name_everything(model: ir.Model, outputs: list[str]) -> None:
    """Names are unique, and outputs have their own: two of one value are told apart by an Identity."""
    graph = model.graph
    for position, name in enumerate(outputs):
        value = graph.outputs[position]
        if value.name != name or value in list(graph.outputs)[:position]:
            node = ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type, node.outputs[0].name = value.shape, value.type, name
            graph.append(node)
            graph.outputs[position] = node.outputs[0]
    common.NameFixPass()(model)
    model.producer_name, model.producer_version = "edgelora", None


@contextlib.contextmanager
def onnx_errors(what: str) -> Iterator[None]:
    """Turn the assorted exceptions of the onnx library into one ConversionError."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"{what}: {str(error).splitlines()[0] if str(error) else error!r}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress remarks off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
