"""The `edgelora` command: one verb a file, errors of the user as exit status 2 and no traceback."""

from edgelora.cli.main import main

__all__ = ["main"]
