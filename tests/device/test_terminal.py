"""What a person sees on a terminal: an error takes the progress line's place, and no answer's."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelora.cli import main
from edgelora.cli.common import end_progress, error_line, note, progress_line

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
_PIECES = re.compile(r"\r|\n|\x1b\[K|[^\r\n\x1b]+")


@contextlib.contextmanager
def terminal() -> Iterator[list[str]]:
    """A pseudo-terminal as standard error; when it is left, the list holds the lines that it shows in the end."""
    reader, writer = pty.openpty()
    lines: list[str] = []
    with os.fdopen(writer, "w", encoding="utf-8") as stream, contextlib.redirect_stderr(stream):
        yield lines
    written = b""
    with contextlib.suppress(OSError):  # Linux' way to say that all is read
        while piece := os.read(reader, 4096):
            written += piece
    os.close(reader)
    lines += seen(written.decode())


def seen(written: str) -> list[str]:
    """The lines of a terminal after what is written to it."""
    lines, column = [""], 0
    for piece in _PIECES.findall(written):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            lines.append("")
        elif piece == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column].ljust(column) + piece + lines[-1][column + len(piece) :]
            column += len(piece)
    return lines


def test_an_error_takes_the_place_of_the_progress_line(tmp_path: Path):
    pytest.importorskip("tflite", reason="needs the TFLite schema: edgelora[tflite]")
    broken = tmp_path / "a-file-with-a-long-name.tflite"
    broken.write_bytes(b"")
    with terminal() as lines:
        assert main(["convert", str(broken), "-o", str(tmp_path / "b")]) == 2
    said, after = lines
    assert said.startswith(f"edgelora: {broken}: not a TFLite file") and not after


def test_an_error_leaves_an_answer_that_stands_in_its_line():
    with terminal() as lines:
        sys.stderr.write("half an answer ")
        error_line("edgelora: interrupted")
    assert lines == ["half an answer edgelora: interrupted", ""]


def test_a_progress_line_replaces_another_and_is_cleared():
    with terminal() as lines:
        progress_line("checking a long name")
        progress_line("checking b")
    assert lines == ["checking b"]
    with terminal() as lines:
        progress_line("checking b")
        end_progress()
        note("done")
    assert lines == ["done", ""]
