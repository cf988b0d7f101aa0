"""Groups of nodes with a gradient rule of their own. Importing the package registers the rules."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora_tools.composites.attend import ATTEND, PLAIN_ATTEND
from edgelora_tools.composites.registry import Composite
from edgelora_tools.composites.rms_norm import RMS_NORM
from edgelora_tools.composites.rotary import ROTARY
from edgelora_tools.composites.silu import SILU
from edgelora_tools.composites.swiglu import SWIGLU
from edgelora_tools.lowering import DOMAIN

COMPOSITES: tuple[Composite, ...] = (SILU, SWIGLU, RMS_NORM, ROTARY, ATTEND)
OF_LONG_ROWS: tuple[Composite, ...] = (PLAIN_ATTEND,)

__all__ = ["COMPOSITES", "Composite", "recognise_composites"]


def recognise_composites(model: ir.Model, long_rows: bool = False) -> ir.Model:
    """Replace every group of the main graph that is a composite, in place, and return the model. Some are worth it
    for long rows alone.

    Shapes must be known (measure_shapes.py). A value of the group that something else reads stays.
    """
    known = COMPOSITES + OF_LONG_ROWS if long_rows else COMPOSITES
    for node in list(model.graph):
        found = next((made for c in known if (made := c.recognise(node)) is not None), None)
        if found is None:
            continue
        old, new = node.outputs[0], found.outputs[0]
        new.shape, new.type, new.name = old.shape, old.type, old.name
        found.metadata_props.update(node.metadata_props)
        found.name = node.name
        model.graph.opset_imports[DOMAIN] = 1
        model.graph.insert_before(node, found)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)
    return model
