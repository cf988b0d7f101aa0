"""Tidy a finished graph: merge equal nodes, drop dead ones and names that only the exporter needed."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.spell_out_axes import spell_out_axes


def tidy(model: ir.Model) -> ir.Model:
    """Remove duplicates, dead nodes, metadata and intermediate shapes. Outputs are unchanged."""
    spell_out_axes(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.graph.opset_imports.pop(DOMAIN, None)
    common.RemoveUnusedOpsetsPass()(model)
    common.NameFixPass()(model)
    outputs = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape, value.type = None, None
    return model
