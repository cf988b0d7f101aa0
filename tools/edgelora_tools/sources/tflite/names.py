"""Module ids from the names that TensorFlow gives tensors: `model/conv2d_1/Conv2D` is `model.conv2d_1`.

A fused tensor has the names of all that went into it, one after another with semicolons between, and numbers that
the converter appended: the first that is a product's own decides.
"""

from __future__ import annotations

import re

_PRODUCTS = re.compile(
    r"/(Conv2D|depthwise|separable_conv2d|MatMul|BiasAdd|Kernel|kernel|conv2d_transpose|Conv1D)\d*(/|$)"
)
_SUFFIXES = re.compile(r"(_dequantize\d*|_densify\d*|:\d+)+$")
_DECODED = re.compile(r"/(ReadVariableOp|resource|Squeeze|ExpandDims|transpose)\d*(?=/|$)")


def module_id(weight: str, output: str) -> str:
    """A stable dotted id for the product of `weight` that makes `output`, both names of tensors.

    The weight's name comes first: it has one product's name where the output's may have several.
    """
    for name in (weight, output):
        for part in name.split(";"):
            part = _SUFFIXES.sub("", part)
            found = _PRODUCTS.search(part)
            if found is not None:
                return _dotted(part[: found.start()])
    first = _DECODED.sub("", _SUFFIXES.sub("", (weight or output).split(";")[0]))
    return _dotted(first) or "product"


def _dotted(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", ".", name).strip(".")
