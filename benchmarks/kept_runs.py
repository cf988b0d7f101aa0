"""Measured runs in a JSON file, written as they come, so that a long benchmark goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import BenchmarkError
from edgelora.files import write_atomic

Run = dict[str, Any]


class KeptRuns:
    """Runs by a key, each under the same `settings`; in the file at `path`, or without one in memory alone."""

    def __init__(self, settings: Mapping[str, Any], path: Path | None) -> None:
        """Take up the runs that the file holds.

        Raises:
            BenchmarkError: it holds runs under other settings, or something else.
        """
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.path = path
        self.runs: dict[str, Run] = {}
        if path is not None and path.exists():
            self.runs = self._read(path)

    def _read(self, path: Path) -> dict[str, Run]:
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            found, runs = body["settings"], dict(body["runs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"{path}: holds no runs to go on from; name another file, or delete it") from error
        differing = sorted(n for n in {*found, *self.settings} if found.get(n) != self.settings.get(n))
        if differing:
            told = "; ".join(f"{n} {found.get(n)} there, {self.settings.get(n)} here" for n in differing)
            raise BenchmarkError(f"{path}: holds runs under other settings ({told}); name another file, or delete it")
        return runs

    def get(self, key: str, measure: Callable[[], Run], needed: Sequence[str] = ()) -> Run:
        """The run of this key, measured if it is not there, or has not all that is `needed` of it."""
        known = self.runs.get(key)
        if known is None or any(known.get(name) is None for name in needed):
            self.runs[key] = measure()
            if self.path is not None:
                write_atomic(self.path, self.to_bytes())
        return self.runs[key]

    def to_bytes(self) -> bytes:
        """The file."""
        return (json.dumps({"settings": self.settings, "runs": self.runs}, indent=1) + "\n").encode()
