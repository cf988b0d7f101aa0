"""The command line in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgelora.cli import main

QUICK = ("--epochs", "2", "--batch-size", "8", "--lr", "0.02")


class Command:
    """`edgelora …` in this process: status, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self.capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        out, err = self.capsys.readouterr()
        return status, out, err

    def json(self, *arguments: str | Path) -> Any:
        """What a successful command prints as JSON, strictly read."""
        status, out, err = self(*arguments, "--json")
        assert status == 0, err
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    def refused(self, *arguments: str | Path) -> str:
        """The message of an error of the user's."""
        status, out, err = self(*arguments)
        assert status == 2, (status, out, err)
        assert "Traceback" not in err
        assert err.strip()
        return err
