"""Verbs between the store and other programs: export, import."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgelora.adapter import CONFIG_FILE, RECORD_FILE, Adapter, label_problems, read_adapter, write_adapter
from edgelora.bundle import Bundle
from edgelora.cli.common import Verbs, add_bundle, add_verb, desktop, emit, note, open_model
from edgelora.errors import AdapterError, ConfigError
from edgelora.manifest import RECURRENT, SKIP_OP, Manifest
from edgelora.onnx_adapter import is_onnx_adapter, read_onnx_adapter, write_onnx_adapter
from edgelora.peft_names import convolved_head

_MODELS = ("onnx", "genai")  # what is exported without an adapter too


def add_verbs(verbs: Verbs) -> None:
    """Register the verbs."""
    parser = add_verb(
        verbs,
        "export",
        run_export,
        "Write an adapter for other programs, or the base with it as one plain ONNX or TFLite model (desktop).",
        "edgelora export home.edgelora --adapter user-1 --to onnx -o user-1.onnx",
    )
    add_bundle(parser)
    parser.add_argument("--adapter", metavar="NAME", help="whose adapter (to onnx and genai, default: the base alone)")
    parser.add_argument("--version", type=int, metavar="N")
    parser.add_argument(
        "--to",
        choices=("peft", "onnx_adapter", "onnx", "genai", "tflite"),
        default="peft",
        help="a directory that PEFT reads (default), a file that ONNX Runtime feeds to the bundle's forward.onnx, a "
        "model of its own, a directory that ONNX Runtime GenAI writes with, or the TFLite file that the bundle was "
        "made from, with the adapter in its weights",
    )
    parser.add_argument("--source", type=Path, metavar="FILE.tflite", help="to tflite: that file, as it was converted")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PATH")
    parser.add_argument(
        "--prefix",
        default="",
        metavar="PATH",
        help="to peft: where the model that PEFT wraps holds this base, such as bert (default: it is this base)",
    )
    parser.add_argument("--head", metavar="NAME", help="to peft: what that model calls its head (default: as here)")
    parser.add_argument(
        "--external-data",
        action="store_true",
        help="to onnx and genai: keep the weights in a file beside the model (done anyway where they exceed 1.5 GiB)",
    )
    parser.add_argument(
        "--adapter-inputs",
        action="store_true",
        help="to onnx: the base with inputs for .onnx_adapter files, no adapter unless one is active",
    )

    parser = add_verb(
        verbs,
        "import",
        run_import,
        "Take in an adapter: a directory that export or PEFT wrote, or an .onnx_adapter file.",
        "edgelora import home.edgelora --adapter user-1 user-1-peft",
    )
    add_bundle(parser)
    parser.add_argument("source", type=Path, metavar="PATH", help="the directory or the file")
    parser.add_argument("--adapter", required=True, metavar="NAME", help="the name to save it under")
    parser.add_argument(
        "--accept-base",
        action="store_true",
        help="for adapters that do not name their base's digest, as PEFT's: it was trained on this base",
    )
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="the head's classes, in the order of its outputs")


def run_export(options: argparse.Namespace) -> None:
    """Store -> directory or file."""
    if options.to != "peft" and (options.prefix or options.head):
        raise ConfigError("--prefix and --head are for --to peft: other formats have the names of the bundle")
    if options.to not in _MODELS and options.external_data:
        raise ConfigError("--external-data is for --to onnx and --to genai")
    if options.to != "onnx" and options.adapter_inputs:
        raise ConfigError("--adapter-inputs is for --to onnx (--to genai without --adapter has them)")
    if (options.to == "tflite") != (options.source is not None):
        raise ConfigError("--to tflite and --source go together: the adapter is written into a copy of that file")
    if options.to not in _MODELS and options.adapter is None:
        raise ConfigError(f"--to {options.to} needs --adapter NAME")
    if options.adapter_inputs and options.adapter is not None:
        raise ConfigError("--adapter-inputs writes the base for any adapter: leave --adapter out")
    model = open_model(options)
    manifest = model.bundle.manifest
    adapter = None if options.adapter is None else model.store.load(options.adapter, options.version)
    result: dict[str, Any] = {"adapter": options.adapter, "path": str(options.output)}
    if options.to == "onnx":
        result |= _write_plain(model.bundle, adapter, options)
    elif options.to == "genai":
        files = desktop("interop.genai").save_genai(model.bundle, adapter, options.output, options.external_data)
        result |= {"files": _paths(files)}
    elif adapter is not None and options.to == "tflite":
        result |= _write_tflite(model.bundle, adapter, options)
    elif adapter is not None and options.to == "peft":
        _refuse_for_peft(adapter, manifest)
        named = adapter.with_tensors(convolved_head(adapter.tensors, manifest))
        write_adapter(named, options.output, options.prefix, options.head)
    elif adapter is not None:
        write_onnx_adapter(adapter, manifest, options.output)
    emit(options, result, f"{options.adapter or 'base'}: written to {options.output}")
    if (gap := result.get("difference")) is not None:
        note(f"in TFLite's interpreter it differs from the bundle by {gap:.1e} of the largest value")
    elif options.to == "tflite":
        note("not compared with the bundle: there is no TFLite interpreter (ai-edge-litert or tflite-runtime)")
    if result.get("rescaled"):
        note(f"scales of codes grew to hold the adapter: {', '.join(result['rescaled'])}")
    if result.get("beside"):
        note(f"beside the base, which has no weight to take them: the adapter at {', '.join(result['beside'])}")


def _write_plain(bundle: Bundle, adapter: Adapter | None, options: argparse.Namespace) -> dict[str, Any]:
    """The base with the adapter as a model of its own; says which files, and where the adapter is in no weight."""
    plain = desktop("interop.plain_onnx")
    if options.adapter_inputs:
        return {
            "files": _paths(plain.save_plain(plain.with_adapter_inputs(bundle), options.output, options.external_data))
        }
    merged = desktop("interop.merging").merge(bundle, adapter)
    files = plain.save_plain(merged.model, options.output, options.external_data)
    return {"files": _paths(files), "beside": list(merged.beside)}


def _write_tflite(bundle: Bundle, adapter: Adapter, options: argparse.Namespace) -> dict[str, Any]:
    """The source's own file with the adapter in its weights; says which points changed, and how it compares."""
    tflite = desktop("interop.tflite_file")
    tflite.refuse_head(bundle.manifest)
    adapter.validate(bundle.manifest)
    graphs, feeds = adapter.method.graphs, bundle.feeds(adapter)
    merged = tflite.merged_file(bundle, graphs, feeds, options.source)
    gap = desktop("interop.tflite_engine").difference(bundle, graphs, feeds, merged)
    tflite.save_file(merged, options.source, options.output)
    return {"changed": list(merged.changed), "rescaled": list(merged.rescaled), "difference": gap}


def _paths(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]


def run_import(options: argparse.Namespace) -> None:
    """Directory or file -> store."""
    model = open_model(options)
    manifest = model.bundle.manifest
    adapter = _read(options.source, model.bundle, options.accept_base)
    adapter.validate(manifest)
    _explain_head(adapter, manifest, recorded=(options.source / RECORD_FILE).exists())
    if options.labels is not None:
        adapter = _with_labels(adapter, tuple(options.labels), manifest)
    model.bundle.verified()
    version = model.store.save(options.adapter, adapter)
    emit(options, {"adapter": options.adapter, "version": version}, f"{options.adapter}: version {version} saved")


def _refuse_for_peft(adapter: Adapter, manifest: Manifest) -> None:
    """Raise AdapterError for what PEFT has no place for."""
    if not adapter.config.in_peft:
        raise AdapterError(
            f"PEFT has no {adapter.config.peft_type} adapters: --to onnx writes a model of its own with the adapter in "
            "its weights, if the method goes into weights; `edgelora adapters BUNDLE export --person NAME` writes a "
            "store of a person's own, from whose versions `edgelora import` reads"
        )
    recurrent = [p.id for p in manifest.points if p.op in RECURRENT and p.id in adapter.points]
    if recurrent:
        raise AdapterError(f"PEFT has no LoRA in recurrent layers, where this adapter has {', '.join(recurrent)}")
    skips = [p.id for p in manifest.points if p.op == SKIP_OP and p.id in adapter.points]
    if skips:
        raise AdapterError(
            f"PEFT has no place for {', '.join(skips)}, which lead past layers: convert without --placement skip for "
            "an adapter that PEFT reads"
        )


def _read(source: Path, bundle: Bundle, accept_base: bool) -> Adapter:
    """The adapter at a path, whatever its format."""
    manifest = bundle.manifest
    if is_onnx_adapter(source):
        return read_onnx_adapter(source, manifest, accept_base)
    if source.is_file():
        raise AdapterError(
            f"{source}: neither an .onnx_adapter file nor a directory with {CONFIG_FILE}; a model with an adapter "
            "merged into it holds none to take out"
        )
    return read_adapter(source, manifest, accept_base, bundle)


def _with_labels(adapter: Adapter, labels: tuple[str, ...], manifest: Manifest) -> Adapter:
    if manifest.head is None or manifest.head.weight not in adapter.tensors:
        raise ConfigError("--labels names a head's classes, and the adapter has no head")
    problems = label_problems(labels)
    outputs = len(adapter.tensors[manifest.head.weight]) - manifest.head.leading
    if len(labels) != outputs:
        problems.append(f"--labels names {len(labels)} classes where the head has {outputs} outputs for them")
    if problems:
        raise ConfigError("; ".join(problems))
    return replace(adapter, labels=labels)


def _explain_head(adapter: Adapter, manifest: Manifest, recorded: bool) -> None:
    """Say what the files do not of a head."""
    if manifest.head is None:
        return
    if manifest.head.weight not in adapter.tensors:
        note("the adapter brings no head: `train` will add one, `predict` needs one")
    elif adapter.labels is None and not recorded:
        pooling = manifest.source.get("pooling")
        places = {"token": "each token", "pixel": "each place of a map"}
        reads = places.get(manifest.head.per, f"the pooling {pooling!r}")
        note(f"the adapter's head has no names for its classes, and reads {reads} here, as it must have in its model")
