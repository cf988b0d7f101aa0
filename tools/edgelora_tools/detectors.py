"""What the manifest says of a detector's maps, held against the source's."""

from __future__ import annotations

import onnx_ir as ir

from edgelora.errors import ConversionError
from edgelora.manifest import DetectorSettings
from edgelora.vision.detectors import FAMILIES, OF_NEW_HEADS
from edgelora_tools.gradients.shapes import dims, rank
from edgelora_tools.options import ConvertOptions

TASK = "object-detection"
_SINGLE = ("grid", "fastestdet")  # families of one map


def detector_settings(graph: ir.Graph, options: ConvertOptions) -> DetectorSettings | None:
    """The settings for a bundle: those that are asked for, or those of a new head; None for other tasks.

    Raises:
        ConversionError: they do not suit the task, or the source's maps.
    """
    asked = options.detector
    if options.task != TASK:
        if asked is not None:
            raise ConversionError(f"a detector is for the task {TASK}, not for {options.task}")
        return None
    if asked is None:
        return DetectorSettings(OF_NEW_HEADS)
    problems = _problems(asked, [v for v in graph.outputs if options.output in (None, v.name)])
    if problems:
        raise ConversionError("\n".join(problems))
    return asked


def _problems(asked: DetectorSettings, maps: list[ir.Value]) -> list[str]:
    if asked.family not in FAMILIES:
        return [f"there is no detector {asked.family!r}; there are {', '.join(FAMILIES)}"]
    if not asked.labels:
        return ["a detector with outputs of its own needs the names of its classes, in their order (--classes FILE)"]
    counts = {len(level) for level in asked.anchors}
    if asked.family != "yolo" and asked.anchors:
        return [f"{asked.family} has no anchors: leave them out"]
    if asked.family == "yolo" and (len(asked.anchors) != len(maps) or len(counts) != 1 or 0 in counts):
        return [f"yolo needs anchors for each of its {len(maps)} maps, as many for one as for another (--anchors)"]
    if any(len(one) != 2 or min(one) <= 0 for level in asked.anchors for one in level):
        return ["an anchor is a width and a height above 0"]
    if asked.family in _SINGLE and len(maps) != 1:
        names = ", ".join(str(v.name) for v in maps)
        return [f"{asked.family} has one map, and the source returns {names}: name it with --source-output"]
    per_cell = counts.pop() if counts else 1
    wanted = per_cell * (5 + len(asked.labels))
    problems: list[str] = []
    for value in maps:
        if value.shape is None or rank(value) != 4 or not all(isinstance(size, int) for size in dims(value)[2:]):
            problems.append(f"a detector's map is [batch, channels, h, w] of fixed size; {value.name} is {value.shape}")
        elif dims(value)[1] != wanted:
            problems.append(
                f"{value.name} has {dims(value)[1]} channels where {per_cell} · (5 + {len(asked.labels)} classes) = "
                f"{wanted} are expected"
            )
    return problems
