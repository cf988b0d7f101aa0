"""What every process that certifies needs: imported once, by the server that they are forked from."""

from __future__ import annotations

import importlib
import importlib.util

importlib.import_module("edgelora_tools.certify.architecture")

if importlib.util.find_spec("torch") is not None:
    import torch

    importlib.import_module("torch.onnx")
    torch.set_num_threads(1)
if importlib.util.find_spec("transformers") is not None:
    import transformers

    transformers.logging.set_verbosity_error()
