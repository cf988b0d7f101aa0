"""The verb about adapters in the store: adapters."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgelora.cli.combine import add_options, run_combine
from edgelora.cli.common import (
    Verbs,
    add_bundle,
    add_verb,
    emit,
    memory_size,
    open_model,
    size_text,
    table,
)
from edgelora.errors import ConfigError
from edgelora.person import export_names, names_of, remove_names
from edgelora.store import AdapterStore

_UNSET: Any = object()


def add_verbs(verbs: Verbs) -> None:
    """Register the verbs."""
    parser = add_verb(
        verbs,
        "adapters",
        run_adapters,
        "The store: list, show, rollback; combine adapters; export or remove all that belongs to one person; limits.",
        "edgelora adapters home.edgelora rollback user-1 --to 3\n"
        "  edgelora adapters home.edgelora combine both --from user-1:0.7 user-2:0.3 --combination-type cat\n"
        "  edgelora adapters home.edgelora export --person ann -o ann-s-data\n"
        "  edgelora adapters home.edgelora limits --keep-versions 8 --quota 500MB",
    )
    add_bundle(parser)
    parser.add_argument("action", choices=tuple(_ACTIONS))
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the adapter (not for list and limits)")
    parser.add_argument(
        "--person", metavar="NAME", help="for export and remove: the adapter NAME, and all that are named NAME+…"
    )
    parser.add_argument(
        "--to", "--version", dest="version", type=int, metavar="N", help="rollback to this version (the one before)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="a new folder for export: a store of its own")
    parser.add_argument(
        "--keep-versions", type=whole, metavar="N", default=_UNSET, help="how many versions are kept (16), or all"
    )
    parser.add_argument(
        "--quota",
        type=lambda text: None if text == "none" else memory_size(text),
        metavar="SIZE",
        default=_UNSET,
        help="the store's size at most, as 500MB, or none: caches are deleted to keep to it, never adapters",
    )
    add_options(parser)


def whole(text: str) -> int | None:
    """A whole number, or None for "all"."""
    try:
        return None if text == "all" else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor 'all'") from error


def run_adapters(options: argparse.Namespace) -> None:
    """One of the store's actions; those that change it are refused for a damaged bundle."""
    model = open_model(options)
    if options.action not in _READING:
        model.bundle.verified()
    _ACTIONS[options.action](options, model.store)


def _list(options: argparse.Namespace, store: AdapterStore) -> None:
    entries = [store.show(name) for name in store.list()]
    rows = [(e.name, e.current or None, len(e.versions), size_text(e.size)) for e in entries]
    emit(options, [e.to_dict() for e in entries], table(rows, ("adapter", "version", "versions", "size")))


def _show(options: argparse.Namespace, store: AdapterStore) -> None:
    entry = store.show(_name(options))
    rows = [
        (v.number, "current" if v.number == entry.current else "", v.created, size_text(v.size), v.summary())
        for v in entry.versions
    ]
    emit(options, entry.to_dict(), table(rows, (entry.name, "", "saved", "size", "training")))


def _rollback(options: argparse.Namespace, store: AdapterStore) -> None:
    name = _name(options)
    version = store.rollback(name, options.version)
    emit(options, {"adapter": name, "version": version}, f"{name}: version {version} is current")


def _remove(options: argparse.Namespace, store: AdapterStore) -> None:
    names = _names(options, store)
    remove_names(store, names)
    body = {"removed": names if options.person else names[0]}
    emit(options, body, "\n".join(f"{name}: removed" for name in names))


def _export(options: argparse.Namespace, store: AdapterStore) -> None:
    names = _names(options, store)
    if options.output is None:
        raise ConfigError("`adapters export` needs a new folder: -o DIR")
    files = export_names(store, names, options.output)
    body = {
        "exported": names,
        "path": str(options.output),
        "files": [str(p.relative_to(options.output)) for p in files],
    }
    lines = [*(f"{name}: exported" for name in names), f"{len(files)} files in {options.output}, a store of its own"]
    emit(options, body, "\n".join([*lines, *(["they are not encrypted"] if store.key is not None else [])]))


def _limits(options: argparse.Namespace, store: AdapterStore) -> None:
    settings = store.settings
    if options.keep_versions is not _UNSET:
        settings = replace(settings, keep_versions=options.keep_versions)
    if options.quota is not _UNSET:
        settings = replace(settings, quota=options.quota)
    if settings != store.settings:
        store.configure(settings)
    deleted = store.make_room()
    kept = "all versions" if settings.keep_versions is None else f"{settings.keep_versions} versions of an adapter"
    most = "no quota" if settings.quota is None else f"a quota of {size_text(settings.quota)}"
    text = f"{store.root}: {kept}, {most}" + (f"; {len(deleted)} caches deleted" if deleted else "")
    emit(options, asdict(settings) | {"deleted": [str(path) for path in deleted]}, text)


_ACTIONS = {
    "list": _list,
    "show": _show,
    "remove": _remove,
    "rollback": _rollback,
    "combine": run_combine,
    "export": _export,
    "limits": _limits,
}
_READING = frozenset({"list", "show", "export"})


def _name(options: argparse.Namespace) -> str:
    if options.name is None:
        raise ConfigError(f"`adapters {options.action}` needs the adapter's NAME")
    return options.name


def _names(options: argparse.Namespace, store: AdapterStore) -> list[str]:
    """The adapter that is named, or all of a person."""
    if options.person is None:
        return [_name(options)]
    if options.name is not None:
        raise ConfigError(f"`adapters {options.action}` takes NAME or --person, not both")
    return names_of(store, options.person)
