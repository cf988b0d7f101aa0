"""Ctrl-C while the installed command is still importing its package: a line and the status of an interruption."""

from __future__ import annotations

import pytest

from tests.device import tiny

COMMAND = """
import signal, sys

pressed_at, *settings = sys.argv[1:]

class Pressing:
    def find_spec(self, name, path=None, target=None):
        if name == pressed_at:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Pressing())
if "ignored" in settings:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
import edgelora_command
sys.argv = ["edgelora", "info", "nowhere.edgelora"]
sys.exit(edgelora_command.main())
"""


def ended(*arguments: str) -> tuple[int, str]:
    """The status and what is said, if Ctrl-C is pressed as the first of these is imported."""
    process = tiny.start_python("-c", COMMAND, *arguments)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.parametrize("imported", ["edgelora", "datetime", "numpy.linalg", "edgelora.cli.zoo"])
def test_an_interruption_while_importing_is_a_line(imported: str) -> None:
    """numpy makes an ImportError of an interruption, so that none must be raised."""
    assert ended(imported) == (130, "edgelora: interrupted\n")


@pytest.mark.parametrize("arguments", [("nothing",), ("numpy.linalg", "ignored")], ids=" ".join)
def test_otherwise_the_command_runs(arguments: tuple[str, ...]) -> None:
    """Where a shell has interruptions ignored, as in its background, they stay so."""
    status, said = ended(*arguments)
    assert status == 2 and said.startswith("edgelora: nowhere.edgelora: not a bundle")
