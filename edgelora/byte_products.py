"""Products of unsigned by signed bytes, exact on every processor.

x86 without VNNI adds two such products in 16 bits, which saturate: 2·255·127. There ONNX Runtime can take weights as
unsigned bytes, of which the sums are exact, and the products slower (docs/decisions/0030).
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

_INFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64", "x86", "i386", "i486", "i586", "i686")
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_EXACT = "session.x64quantprecision"


def keep_exact(options: Any) -> None:
    """Set what an ONNX Runtime session needs on this processor to compute products of bytes exactly."""
    if not adds_in_32_bits(platform.machine()):
        options.add_session_config_entry(_EXACT, "1")


@functools.cache
def adds_in_32_bits(machine: str, info: Path = _INFO) -> bool:
    """Whether the processor is known to add products of bytes in 32 bits: not x86, or one that says it has VNNI."""
    if machine.lower() not in _X86:
        return True
    try:
        with info.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return not _VNNI.isdisjoint(line.partition(":")[2].split())
    except OSError:
        pass
    return False
