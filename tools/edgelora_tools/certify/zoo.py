"""Certify many sources, each in a process of its own with a time limit, and keep what was found in a file.

The file has a JSON object a line, a certificate each, and is written as the run goes: an interrupted run
continues with those that it lacks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from edgelora.errors import DataError
from edgelora_tools.certify.architecture import CRASHED, IN_PART, REFUSED, TRAINS, WRONG, Certificate, certify

TIME_LIMIT = 180.0
_BEST = (TRAINS, IN_PART, WRONG, CRASHED, REFUSED)
_GRACE = 5.0

Rows = dict[str, list[Certificate]]


def run(
    sources: Sequence[str],
    exporters: Sequence[str],
    results: Path | None,
    limit: float = TIME_LIMIT,
    retry: bool = False,
) -> Iterator[Certificate]:
    """Certify each source with the exporters in turn, until all of its points train; yields as it goes.

    What `results` holds is not done a second time, except for what does not train if `retry`.
    """
    known = {} if results is None else {(c.source, c.exporter): c for c in read(results)}
    for source in sources:
        for exporter in exporters if ":" in source or Path(source).is_dir() else exporters[:1]:
            found = known.get((source, exporter))
            if found is None or (retry and found.verdict != TRAINS):
                found = in_process(source, exporter, limit)
                if results is not None:
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(found.to_dict()) + "\n")
            yield found
            if found.verdict == TRAINS:
                break


def read(path: Path) -> list[Certificate]:
    """The certificates of a file; none if there is no file.

    Raises:
        DataError: a line is no certificate.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            body = json.loads(line)
            body["lost"] = tuple(body["lost"])
            found.append(Certificate(**body))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}:{number}: not a certificate ({error}); delete the file to begin anew") from error
    return found


def best(certificates: Sequence[Certificate]) -> Rows:
    """The certificates by source, the one that goes farthest first, later ones in place of earlier ones."""
    latest = {(c.source, c.exporter): c for c in certificates}
    rows: Rows = {}
    for found in latest.values():
        rows.setdefault(found.source, []).append(found)
    return {source: sorted(found, key=lambda c: _BEST.index(c.verdict)) for source, found in rows.items()}


def in_process(source: str, exporter: str, limit: float) -> Certificate:
    """The certificate, from a process that may crash or hang without harm."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.set_forkserver_preload(["edgelora_tools.certify.preloaded"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(source, exporter, sender), daemon=True)
    process.start()
    sender.close()
    failed = Certificate(source, exporter, verdict=CRASHED)
    try:
        if not receiver.poll(limit):
            return replace(failed, reason=f"not done after {limit:.0f} s", seconds=limit)
        return receiver.recv()
    except EOFError:
        process.join(_GRACE)
        code = process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"status {code}"
        return replace(failed, reason=f"the process ended with {name}")
    finally:
        receiver.close()
        process.kill()
        process.join(_GRACE)


def _work(source: str, exporter: str, sender: Connection) -> None:
    """Certify with the libraries' remarks out of the way, and send what was found."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sender.send(certify(source, exporter))
