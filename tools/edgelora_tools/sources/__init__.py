"""Where base models come from. `open_source` chooses by what SOURCE is."""

from __future__ import annotations

from pathlib import Path

from edgelora.errors import ConversionError
from edgelora_tools.sources.base import Source
from edgelora_tools.sources.fixed import fixed

GENERATION = "text-generation"  # the task for which a source comes with its head and a cache


def open_source(
    spec: str,
    exporter: str = "dynamo",
    tokenizer: Path | None = None,
    task: str | None = None,
    check_tokenizer: bool = True,
) -> Source:
    """SOURCE: an `.onnx` or `.tflite` file, a Hugging Face directory, or `module:factory`; for the task
    `text-generation` a Hugging Face directory or a GGUF file, which must read plain sentences by its tokenizer if
    `check_tokenizer`.

    Raises:
        ConversionError: it is none of these, or cannot be read.
    """
    path = Path(spec)
    if task == GENERATION:
        if not path.exists():
            raise ConversionError(f"{spec}: no such file or directory")
        if not path.is_dir() and not (path.is_file() and path.suffix == ".gguf"):
            raise ConversionError(f"{spec}: {GENERATION} converts Hugging Face directories and GGUF files")
        from edgelora_tools.sources.causal_lm import causal_lm_source

        return causal_lm_source(path, exporter, tokenizer, check_tokenizer)
    if path.is_dir():
        from edgelora_tools.sources.huggingface import huggingface_source

        return huggingface_source(path, exporter, tokenizer)
    if path.suffix == ".onnx":
        from edgelora_tools.sources.onnx_file import onnx_source

        return onnx_source(path, tokenizer)
    if path.suffix == ".tflite":
        from edgelora_tools.sources.tflite import tflite_source

        return tflite_source(path, tokenizer)
    if path.suffix == ".gguf":
        raise ConversionError(f"{spec}: a GGUF file holds a language model: convert it with --task {GENERATION}")
    if path.exists():
        raise ConversionError(
            f"{spec}: EdgeLoRA converts .onnx and .tflite files, Hugging Face directories and module:factory"
        )
    if ":" in spec:
        from edgelora_tools.sources.torch_export import factory_source

        return factory_source(spec, exporter)
    raise ConversionError(f"{spec}: no such file or directory")


__all__ = ["Source", "fixed", "open_source"]
