"""What is broadcast only to be multiplied or added element by element need not be written out: the operator broadcasts.

The gradient of a mean over places is such a value, before the mask of what was averaged.
"""

from __future__ import annotations

import onnx_ir as ir

from edgelora_tools.gradients.shapes import dims, known_equal

_BROADCASTING = frozenset({"Add", "Div", "Mul", "Sub"})


def spare_expand(graph: ir.Graph) -> None:
    """Let these operators read what an Expand reads, in place, where their other input has the shape that it gives.

    Values must have their shapes. Expands that nothing reads any more stay.
    """
    for node in graph:
        if node.domain or node.op_type not in _BROADCASTING:
            continue
        for at, other in ((0, node.inputs[1]), (1, node.inputs[0])):
            made = node.inputs[at]
            maker = None if made is None else made.producer()
            if made is None or other is None or maker is None or maker.op_type != "Expand" or made is other:
                continue
            if made.shape is not None and other.shape is not None and known_equal(dims(made), dims(other)):
                node.replace_input_with(at, maker.inputs[0])
                break  # the other gives the shape now
