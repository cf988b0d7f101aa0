"""Which processors are told to compute products of bytes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgelora.byte_products import adds_in_32_bits

HEAD = "processor\t: 0\nmodel name\t: x\n"


@pytest.mark.parametrize(
    ("machine", "flags", "known"),
    [
        ("x86_64", "fpu sse4_1 avx avx2 avx512f avx512bw", False),
        ("x86_64", "fpu avx2 avx512f avx512_vnni", True),
        ("AMD64", "fpu avx2 avx_vnni", True),
        ("i686", "fpu sse4_1", False),
        ("x86_64", "fpu avx2 avx512_vnnix", False),
        ("aarch64", "fp asimd", True),
        ("armv7l", "neon", True),
    ],
)
def test_the_processors_flags_tell(tmp_path: Path, machine: str, flags: str, known: bool):
    info = tmp_path / "cpuinfo"
    info.write_text(f"{HEAD}flags\t\t: {flags}\nbugs\t: y\n\n{HEAD}")
    assert adds_in_32_bits(machine, info) is known


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe flags", HEAD.encode()])
def test_an_x86_processor_that_does_not_tell_is_not_trusted(tmp_path: Path, content: bytes | None):
    info = tmp_path / "cpuinfo"
    if content is not None:
        info.write_bytes(content)
    assert not adds_in_32_bits("x86_64", info)
    assert adds_in_32_bits("arm64", info)
