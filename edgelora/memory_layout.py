"""The layout that a run within a memory budget chose, kept beside its state: continued, it goes on in the same way.

A layout is what decides the result's last bits: the training graph, the samples of a run, whether weights are packed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgelora.files import write_atomic

LAYOUT_FILE = "memory.json"
Layout = tuple[str, int, bool]
_FIELDS = ("file", "part_size", "prepacked")


def write_layout(folder: Path, layout: Layout, identity: str) -> None:
    """Keep what was chosen beside the run's state: a run that is continued goes on in the same way, to the last bit."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {"run_id": identity} | dict(zip(_FIELDS, layout, strict=True))
    write_atomic(folder / LAYOUT_FILE, json.dumps(body).encode())


def read_layout(folder: Path, identity: str) -> Layout | None:
    """What this run chose when it began; None if it has not begun."""
    try:
        body: Any = json.loads((folder / LAYOUT_FILE).read_bytes())
        return tuple(body[name] for name in _FIELDS) if body["run_id"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
