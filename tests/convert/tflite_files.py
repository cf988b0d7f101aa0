"""TFLite files written byte for byte as asked, for what no converter would write."""

from __future__ import annotations

import flatbuffers
import numpy as np
import tflite

IDENTIFIER = b"TFL3"


def shared(tables: int, entries: int, name: str, held: int) -> bytes:
    """A file of `tables` int8 tensors, each told `entries` times, with one name and one buffer of `held` bytes."""
    builder = flatbuffers.Builder(1 << 20)
    title = builder.CreateString(name)
    data = builder.CreateNumpyVector(np.zeros(held, np.uint8))
    tflite.BufferStart(builder)
    tflite.BufferAddData(builder, data)
    buffers = _offsets(builder, [tflite.BufferEnd(builder)])
    shape = builder.CreateNumpyVector(np.array([held], np.int32))
    tensors = []
    for _ in range(tables):
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, shape)
        tflite.TensorAddType(builder, tflite.TensorType.INT8)
        tflite.TensorAddName(builder, title)
        tensors.append(tflite.TensorEnd(builder))
    told = _offsets(builder, tensors * entries)
    ends = builder.CreateNumpyVector(np.zeros(1, np.int32))
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, told)
    tflite.SubGraphAddInputs(builder, ends)
    tflite.SubGraphAddOutputs(builder, ends)
    graphs = _offsets(builder, [tflite.SubGraphEnd(builder)])
    tflite.ModelStart(builder)
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddBuffers(builder, buffers)
    builder.Finish(tflite.ModelEnd(builder), IDENTIFIER)
    return bytes(builder.Output())


def _offsets(builder: flatbuffers.Builder, tables: list[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return builder.EndVector()
