"""Free the names that a graph builder gives to its constants, so that another builder can add to the graph."""

from __future__ import annotations

import onnx_ir as ir

_BUILDERS = "const_"


def free_names(graph: ir.Graph) -> ir.Graph:
    """Rename, in place, initializers whose names a new builder would count up to again; returns the graph."""
    taken = set(graph.initializers)
    for name, value in list(graph.initializers.items()):
        if name.startswith(_BUILDERS):
            number = 0
            while (free := f"constant.{number}.{name}") in taken:
                number += 1
            taken.add(free)
            graph.initializers.pop(name)
            if value.const_value is not None:
                # a tensor of its own: a value's new name goes to its tensor, and so into the source's
                value.const_value = ir.tensor(value.const_value.numpy(), name=free)
            value.name = free
            graph.register_initializer(value)
    return graph
