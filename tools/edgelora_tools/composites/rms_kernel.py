"""RMS normalization in a training graph: one kernel of ONNX Runtime's that has s = 1/√(mean(X²) + ε) as an output.

`SimplifiedLayerNormalization` is what ONNX Runtime itself makes of the standard nodes, in every build, but for s, which
the backward pass would then compute anew: a pass over X, a mean, and a root. ONNX Runtime's operator stands in the
standard's domain, which does not know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.rms_norm import RMS_NORM
from edgelora_tools.gradients.nodes import operands


def lower(op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
    """Y and s of X `[…, width]` and γ `[width]` by the kernel; the standard nodes where s is not read, or numbers have
    not 32 bits."""
    x, gamma = operands(node)
    if len(node.outputs) == 1 or x.dtype != ir.DataType.FLOAT:
        return RMS_NORM.lower(op, node)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return op.SimplifiedLayerNormalization(x, gamma, axis=-1, epsilon=epsilon, _outputs=2)


RMS_KERNEL = replace(RMS_NORM, lower=lower)
