"""When a run began: chat templates may tell the day, and a run that is continued on another one reads the same text."""

from __future__ import annotations

import json
from copy import copy
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelora.files import write_atomic
from edgelora.language.tokens import Tokens

if TYPE_CHECKING:
    from edgelora.runtime import Model

CLOCK_FILE = "began.json"


def read_began(folder: Path, identity: str) -> datetime | None:
    """When this run began, by what is kept in its folder; None if that tells of no such run."""
    try:
        body: Any = json.loads((folder / CLOCK_FILE).read_bytes())
        return datetime.fromisoformat(body["began"]) if body["run_id"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_began(folder: Path, identity: str, began: datetime) -> None:
    """Keep it beside the run's state."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / CLOCK_FILE, json.dumps({"run_id": identity, "began": began.isoformat()}).encode())


def told_the_time(model: Model, began: datetime) -> Model | None:
    """The model with samples read as at that time; None where nothing of them depends on it."""
    if not isinstance(model.encoder, Tokens) or not model.encoder.tells_time:
        return None
    made = copy(model)
    made.encoder = model.encoder.at(began)
    return made
