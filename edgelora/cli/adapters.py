"""Verbs about adapters on disk: adapters (list, show, remove, rollback), export, import."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgelora.adapter import read_adapter, write_adapter
from edgelora.cli.common import Verbs, add_bundle, add_verb, emit, note, open_model, size_text, table
from edgelora.errors import AdapterError
from edgelora.manifest import SKIP_OP


def add_verbs(verbs: Verbs) -> None:
    """Register the verbs."""
    parser = add_verb(
        verbs,
        "adapters",
        run_adapters,
        "The store: list, show, remove, rollback.",
        "edgelora adapters home.edgelora rollback user-1",
    )
    add_bundle(parser)
    parser.add_argument("action", choices=("list", "show", "remove", "rollback"))
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the adapter (not for list)")
    parser.add_argument("--version", type=int, metavar="N", help="to roll back to (default: the one before)")

    parser = add_verb(
        verbs,
        "export",
        run_export,
        "Write an adapter as PEFT reads it (adapter_config.json, adapter_model.safetensors).",
        "edgelora export home.edgelora --adapter user-1 -o user-1-peft",
    )
    add_bundle(parser)
    parser.add_argument("--adapter", required=True, metavar="NAME")
    parser.add_argument("--version", type=int, metavar="N")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")

    parser = add_verb(
        verbs,
        "import",
        run_import,
        "Take in an adapter directory that export or PEFT wrote.",
        "edgelora import home.edgelora --adapter user-1 user-1-peft",
    )
    add_bundle(parser)
    parser.add_argument("source", type=Path, metavar="DIR")
    parser.add_argument("--adapter", required=True, metavar="NAME", help="the name to save it under")
    parser.add_argument(
        "--accept-base",
        action="store_true",
        help="for PEFT's adapters, which do not name their base's digest: it was trained on this base",
    )


def run_adapters(options: argparse.Namespace) -> None:
    """The store's four actions."""
    model = open_model(options)
    store = model.store
    if options.action == "list":
        entries = [store.show(name) for name in store.list()]
        rows = [(e.name, e.current, len(e.versions), size_text(e.size)) for e in entries]
        emit(options, [e.to_dict() for e in entries], table(rows, ("adapter", "version", "versions", "size")))
        return
    if options.name is None:
        from edgelora.errors import ConfigError

        raise ConfigError(f"`adapters {options.action}` needs the adapter's NAME")
    if options.action == "show":
        entry = store.show(options.name)
        rows = [
            (v.number, "current" if v.number == entry.current else "", v.created, size_text(v.size), v.summary())
            for v in entry.versions
        ]
        emit(options, entry.to_dict(), table(rows, (options.name, "", "saved", "size", "training")))
    elif options.action == "remove":
        store.remove(options.name)
        emit(options, {"removed": options.name}, f"{options.name}: removed")
    else:
        version = store.rollback(options.name, options.version)
        emit(options, {"adapter": options.name, "version": version}, f"{options.name}: version {version} is current")


def run_export(options: argparse.Namespace) -> None:
    """Store -> directory."""
    model = open_model(options)
    adapter = model.store.load(options.adapter, options.version)
    skips = [p.id for p in model.bundle.manifest.points if p.op == SKIP_OP and p.id in adapter.points]
    if skips:
        raise AdapterError(
            f"PEFT has no place for {', '.join(skips)}, which lead past layers: convert without --placement skip for "
            "an adapter that PEFT reads"
        )
    write_adapter(adapter, options.output)
    emit(
        options,
        {"adapter": options.adapter, "path": str(options.output)},
        f"{options.adapter}: written to {options.output}",
    )


def run_import(options: argparse.Namespace) -> None:
    """Directory -> store."""
    model = open_model(options)
    manifest = model.bundle.manifest
    adapter = read_adapter(options.source, manifest, accept_base=options.accept_base)
    adapter.validate(manifest)
    if manifest.head is not None and manifest.head.weight not in adapter.tensors:
        note("the adapter brings no head: `train` will add one, `predict` needs one")
    version = model.store.save(options.adapter, adapter)
    emit(options, {"adapter": options.adapter, "version": version}, f"{options.adapter}: version {version} saved")
