"""Files of records: whatever their bytes say, they are read as they were written or not at all."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.record_file import RecordFile, RecordsInMemory

FACTS = {"base": "x"}


def forged(header: bytes, table: bytes, records: bytes = b"") -> bytes:
    """A file whose checksum is right, whatever it says."""
    before = b"ELRECORD" + struct.pack("<Q", len(header)) + header
    return before + table + struct.pack("<I", zlib.crc32(before + table)) + records


def table(*sizes: int) -> bytes:
    return np.asarray(sizes, "<i8").tobytes() + bytes(4 * len(sizes))


def header(**body: object) -> bytes:
    return json.dumps(FACTS | body).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ELRECORD",
        forged(b"[]", b""),
        forged(b"[" * 100_000, b""),
        forged(b"null", b""),
        forged(header(), b""),
        forged(header(records="1"), table(1), b"x"),
        forged(header(records=1.5), table(1), b"x"),
        forged(header(records=-1), b""),
        forged(header(records=2**62), table(1)),
        forged(header(records=2), table(-5, 6), b"x"),
        forged(header(records=2), table(2**63 - 1, 2**63 - 1), b""),
        forged(header(records=1), table(2), b"x"),
        forged(header(records=1)[:-1], table(1), b"x"),
    ],
)
def test_a_forged_file_is_not_opened(tmp_path: Path, content: bytes):
    (tmp_path / "x.cache").write_bytes(content)
    assert RecordFile.open(tmp_path / "x.cache", FACTS) is None


def test_what_was_written_is_read(tmp_path: Path):
    made = RecordFile.create(tmp_path / "x.cache", FACTS, np.asarray([3, 0, 2], np.int64))
    made.write(0, b"abc")
    made.write(2, b"de")
    made.finish().close()
    opened = RecordFile.open(tmp_path / "x.cache", FACTS)
    assert opened is not None
    assert [opened.read(i) for i in (0, 2)] == [b"abc", b"de"]
    assert [opened.holds(i) for i in range(3)] == [True, False, True]
    assert RecordFile.open(tmp_path / "x.cache", {"base": "y"}) is None
    opened.close()


@given(st.lists(st.integers(0, 5), max_size=6), st.data())
def test_a_table_has_the_bytes_of_each_record(sizes: list[int], data: st.DataObject):
    records = RecordsInMemory(np.asarray(sizes, np.int64))
    for number, size in enumerate(sizes):
        records.write(number, data.draw(st.binary(min_size=size, max_size=size)))
    chosen = data.draw(st.lists(st.sampled_from(range(len(sizes))))) if sizes else []
    rows = records.finish().table(np.asarray(chosen, np.int64))
    if len(set(sizes)) == 1 and sizes[0]:
        assert rows is not None and [row.tobytes() for row in rows] == [bytes(records.read(n)) for n in chosen]
    else:
        assert rows is None
