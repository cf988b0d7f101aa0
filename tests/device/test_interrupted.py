"""Ctrl-C while the command is still importing its package: a line and the status of an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.device import tiny

PRESSING = """
import signal, sys

class Pressing:
    def find_spec(self, name, path=None, target=None):
        if name == pressed_at:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Pressing())
"""
COMMAND = f"""
import sys
pressed_at, *settings = sys.argv[1:]
{PRESSING}
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


def ended_module(folder: Path, pressed_at: str, *command: str) -> tuple[int, str]:
    """The same of `python -m`, to which what Python imports first of all adds the pressing."""
    (folder / "sitecustomize.py").write_text(f"pressed_at = {pressed_at!r}\n{PRESSING}", encoding="utf-8")
    process = tiny.start_python("-m", *command, paths=[folder])
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.parametrize("imported", ["edgelora.adapter", "numpy.linalg", "edgelora.cli.zoo"])
def test_so_it_is_where_python_runs_the_package(imported: str, tmp_path: Path) -> None:
    """Which Python imports before its `__main__`."""
    assert ended_module(tmp_path, imported, "edgelora", "info", "x") == (130, "edgelora: interrupted\n")


def test_the_package_run_by_python_says_what_the_command_says(tmp_path: Path) -> None:
    status, said = ended_module(tmp_path, "nothing", "edgelora", "info", "nowhere.edgelora")
    assert status == 2 and said.startswith("edgelora: nowhere.edgelora: not a bundle")


def test_an_application_that_imports_the_package_is_interrupted_in_its_own_way(tmp_path: Path) -> None:
    (tmp_path / "application").mkdir()
    (tmp_path / "application" / "__init__.py").write_text("import edgelora, numpy.testing\n")
    (tmp_path / "application" / "__main__.py").write_text("")
    status, said = ended_module(tmp_path, "numpy.testing", "application", "-m", "edgelora")
    assert status != 130 and said.endswith("KeyboardInterrupt\n") and "edgelora: interrupted" not in said
