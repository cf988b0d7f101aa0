"""Make onnxruntime-training's artifacts: `python -m benchmarks.rivals.ort_artifacts MODEL FOLDER PARAMETER...`.

Runs in that rival's environment. AdamW as the other contenders have it: no weight decay, ε = 1e-8.
"""

from __future__ import annotations

import sys

import onnx

from benchmarks.rivals.ort_package import module


def main() -> None:
    path, folder, *trained = sys.argv[1:]
    artifacts, onnxblock = module("artifacts"), module("onnxblock")
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization" and len(node.output) == 1:  # its gradient reads these statistics
            node.output.extend([f"{node.output[0]}.mean", f"{node.output[0]}.inverse"])
    names = [tensor.name for tensor in model.graph.initializer]
    artifacts.generate_artifacts(
        model,
        requires_grad=trained,
        frozen_params=[name for name in names if name not in trained],
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=onnxblock.optim.AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
        artifact_directory=folder,
        additional_output_names=[model.graph.output[0].name],
    )


if __name__ == "__main__":
    main()
