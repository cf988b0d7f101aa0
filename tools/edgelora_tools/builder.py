"""onnxscript's builder of graphs, for calls that give inputs by position and attributes by name.

Which of them are inputs need not be looked up then: for every node, it would read all of the operator's schema anew.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import onnx
import onnxscript


class GraphBuilder(onnxscript.GraphBuilder):
    """Emits nodes into a graph; `op` has a method for each operator."""

    def _partition_inputs_attributes(
        self, schema: onnx.defs.OpSchema | None, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The inputs and the attributes.

        Raises:
            TypeError: the operator takes another number of inputs, or has no such attribute.
        """
        if schema is None:
            return args, kwargs
        if not schema.min_input <= len(args) <= schema.max_input:
            raise TypeError(
                f"{schema.name} takes from {schema.min_input} to {schema.max_input} inputs, not {len(args)}"
            )
        if strange := kwargs.keys() - _attributes(schema.name, schema.since_version, schema.domain):
            raise TypeError(f"{schema.name} has no attribute {', '.join(sorted(strange))}")
        return args, kwargs


@functools.cache
def _attributes(name: str, version: int, domain: str) -> frozenset[str]:
    return frozenset(onnx.defs.get_schema(name, version, domain).attributes)
