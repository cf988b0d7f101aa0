"""A GGUF file that is cut, altered or none is refused by name before anything is made of it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgelora.cli import main
from edgelora.errors import ConversionError
from edgelora_tools.sources import open_source
from edgelora_tools.sources.gguf_header import check_gguf
from tests.fuzz.mutations import spoil_bytes
from tests.language.gguf_files import gguf_file
from tests.language_models import build

HEADER = 12_000  # bytes at the beginning of the file, most of them the tokenizer's


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return gguf_file(build("llama"), tmp_path_factory.mktemp("gguf") / "tiny.gguf", "Q8_0").read_bytes()


def fact(content: bytes, name: bytes, kind: int, value: int) -> bytes:
    """The file with another value of a fact, both of them numbers of 4 bytes."""
    at = content.index(name) + len(name)
    return content[:at] + struct.pack("<II", kind, value) + content[at + 8 :]


def of_codes(content: bytes, kind: int) -> bytes:
    """The file with the codes of a matrix called by another number."""
    at = content.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 2 * 8
    assert struct.unpack_from("<I", content, at) == (8,)  # Q8_0
    return content[:at] + struct.pack("<I", kind) + content[at + 4 :]


def endless(content: bytes, name: bytes) -> bytes:
    """The file with an array that says to be very long."""
    at = content.index(name) + len(name)
    assert struct.unpack_from("<I", content, at) == (9,)  # an array
    return content[: at + 8] + struct.pack("<Q", 1 << 60) + content[at + 16 :]


def one_of_two(content: bytes) -> bytes:
    """The file with a fact more: that it is split."""
    tensors, facts = struct.unpack_from("<QQ", content, 8)
    name = b"split.count"
    more = struct.pack("<Q", len(name)) + name + struct.pack("<IH", 2, 2)
    return content[:8] + struct.pack("<QQ", tensors, facts + 1) + more + content[24:]


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda _: b"", "not a GGUF file"),
    "another file": (lambda c: b"PK\x03\x04" + c[4:], "not a GGUF file"),
    "version 1": (lambda c: c[:4] + struct.pack("<I", 1) + c[8:], "GGUF of version 1; 2 and 3 are read"),
    "cut in the header": (lambda c: c[:300], "ends within its header"),
    "a length that lies": (lambda c: c[:24] + b"\xff" * 8 + c[32:], "ends within its header"),
    "numbers without end": (lambda c: endless(c, b"tokenizer.ggml.token_type"), "ends within its header"),
    "words without end": (lambda c: endless(c, b"tokenizer.ggml.tokens"), "ends within its header"),
    "cut in the data": (lambda c: c[:-1000], r"not whole: it has [\d,]+ bytes, and its tensors take"),
    "codes of tomorrow": (
        lambda c: of_codes(c, 99),
        r"codes that nothing .*: blk\.0\.ffn_up\.weight \(type 99\)",
    ),
    "a part": (one_of_two, "one of 2 parts"),
    "layers without end": (lambda c: fact(c, b"llama.block_count", 4, 2**25), "33554432 layers, and 20 tensors"),
    "layers without tensors": (lambda c: fact(c, b"llama.block_count", 4, 3), r"there is no model\.layers\.2\."),
    "a value of no type": (lambda c: fact(c, b"llama.block_count", 77, 2), "malformed: a value of type 77"),
    "no text": (lambda c: c.replace(b"llama.block", b"llama\xffblock"), "is not UTF-8"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_wrong_is_named(damage: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spoil, said = DAMAGED[damage]
    path = tmp_path / "x.gguf"
    path.write_bytes(spoil(content))
    with pytest.raises(ConversionError, match=said):
        open_source(str(path), task="text-generation")
    assert main(["convert", str(path), "-o", str(tmp_path / "x.edgelora"), "--task", "text-generation"]) == 2
    assert str(path) in capsys.readouterr().err


def test_one_of_several_files_is_to_be_named(content: bytes, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=r"several GGUF files, a\.gguf, b\.gguf"):
        open_source(str(tmp_path), task="text-generation")


def test_spoilt_headers_end_in_the_documented_error(content: bytes, tmp_path: Path) -> None:
    path, rng = tmp_path / "x.gguf", random.Random(0)
    for _ in range(300):
        path.write_bytes(spoil_bytes(content[:HEADER], rng) + content[HEADER:])
        with suppress(ConversionError):
            check_gguf(path)
