"""A manifest without a bundle: two layers of query and value, and a classifier, for tests of adapters."""

from __future__ import annotations

from dataclasses import replace

from edgelora.manifest import Head, InsertionPoint, Manifest, TensorSpec

DIGEST = "ab" * 32
SIZE, VALUE_SIZE = 6, 4

_POINTS = tuple(
    InsertionPoint(f"encoder.layer.{layer}.attention.self.{name}", "MatMul", SIZE, out, layer)
    for layer in (0, 1)
    for name, out in (("query", SIZE), ("value", VALUE_SIZE))
)

MANIFEST = Manifest(
    name="tiny",
    task="sequence-classification",
    base_digest=DIGEST,
    base_parameters=1000,
    inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")),),
    outputs=(TensorSpec("logits", "float32", ("batch", "outputs")),),
    points=_POINTS,
    target_modules=("query", "value"),
    forward="forward.onnx",
    training=(),
    head=Head("classifier", SIZE, "sequence"),
    preprocessing={},
    source={},
    files={},
)
WITHOUT_HEAD = replace(MANIFEST, task="sentence-embedding", head=None)
