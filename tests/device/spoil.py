"""What damages a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoiled(bundle: Path) -> None:
        (bundle / name).write_bytes(change((bundle / name).read_bytes()))

    return spoiled


def edit_manifest(**changed: Any) -> Callable[[Path], None]:
    return spoil("bundle.json", lambda content: json.dumps(json.loads(content) | changed).encode())


def list_file(name: str) -> Callable[[Path], None]:
    """The manifest lists one file more."""

    def change(content: bytes) -> bytes:
        body = json.loads(content)
        body["files"][name] = {"size": 1, "sha256": ""}
        return json.dumps(body).encode()

    return spoil("bundle.json", change)


def flip(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]
