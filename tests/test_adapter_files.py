"""An adapter on disk: the same bytes for the same adapter, and no input that does more than raise AdapterError."""

from __future__ import annotations

import hashlib
import json
import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from edgelora.adapter import (
    CONFIG_FILE,
    RECORD_FILE,
    TENSORS_FILE,
    Adapter,
    new_adapter,
    read_adapter,
    to_files,
    write_adapter,
)
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError
from tests.test_adapter import LABELS, QUERY, trained
from tests.test_peft_exchange import lora_of
from tests.tiny_manifest import DIGEST, MANIFEST, WITHOUT_HEAD

KEY = f"base_model.model.{QUERY}"


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def same(one: Adapter, other: Adapter) -> bool:
    return (
        replace(one, tensors={}) == replace(other, tensors={})
        and one.tensors.keys() == other.tensors.keys()
        and all(
            np.array_equal(t, other.tensors[n]) and t.dtype == other.tensors[n].dtype for n, t in one.tensors.items()
        )
    )


def recorded() -> Adapter:
    config = LoraConfig(r=2, lora_alpha=6.5, target_modules="all-linear", rank_pattern={"query": 1}, lora_dropout=0.1)
    return replace(trained(config), training={"run_id": "x", "steps": 3, "history": [{"epoch": 1, "train_loss": 0.5}]})


@pytest.mark.parametrize("labels", [LABELS, ("ein", "größer", "ON 📢"), None])
def test_reading_gives_what_was_written(tmp_path: Path, labels: tuple[str, ...] | None):
    adapter = replace(recorded(), labels=labels)
    write_adapter(adapter, tmp_path / "a" / "b")
    assert same(read_adapter(tmp_path / "a" / "b"), adapter)


def test_equal_adapters_give_equal_bytes_whatever_the_order(tmp_path: Path):
    adapter = recorded()
    backwards = replace(
        adapter,
        tensors={n: np.asfortranarray(adapter.tensors[n]) for n in reversed(list(adapter.tensors))},
        training=dict(reversed(list(adapter.training.items()))),
    )
    assert to_files(backwards) == to_files(adapter)
    assert to_files(read_adapter(put(tmp_path / "a", to_files(adapter)))) == to_files(adapter)


def test_patterns_that_overlap_mean_the_same_after_reading(tmp_path: Path):
    """The first that matches holds, and files hold them sorted."""
    config = LoraConfig(
        r=2,
        target_modules=("query", "value"),
        rank_pattern={"query": 1, "layer.0.*": 3},
        alpha_pattern={"value": 5, "layer.1.*": 7},
    )
    adapter = new_adapter(WITHOUT_HEAD, config)
    write_adapter(adapter, tmp_path)
    back = read_adapter(tmp_path)
    back.validate(WITHOUT_HEAD)
    assert [lora_of(back).rank(p) for p in adapter.points] == [config.rank(p) for p in adapter.points] == [1, 3, 1, 2]
    assert [lora_of(back).alpha(p) for p in adapter.points] == [config.alpha(p) for p in adapter.points] == [8, 5, 7, 5]
    assert to_files(back) == to_files(adapter)


def golden() -> Adapter:
    """Values that are the same on every machine."""
    adapter = new_adapter(WITHOUT_HEAD, LoraConfig(r=1, lora_alpha=2, target_modules=("0.attention.self.value",)))
    values = {n: (np.arange(t.size, dtype=np.float32) / 4).reshape(t.shape) for n, t in adapter.tensors.items()}
    return replace(adapter, tensors=values, training={"steps": 7})


def test_the_files_are_these_bytes():
    files = to_files(golden())
    assert list(files) == [CONFIG_FILE, RECORD_FILE, TENSORS_FILE]
    header, numbers = files[TENSORS_FILE][:288], files[TENSORS_FILE][288:]
    name = "base_model.model.encoder.layer.0.attention.self.value"
    assert int.from_bytes(header[:8], "little") == 280
    assert (
        header[8:].rstrip()
        == (
            '{"__metadata__":{"format":"pt"},'
            f'"{name}.lora_A.weight":{{"dtype":"F32","shape":[1,6],"data_offsets":[0,24]}},'
            f'"{name}.lora_B.weight":{{"dtype":"F32","shape":[4,1],"data_offsets":[24,40]}}}}'
        ).encode()
    )
    assert numbers == np.asarray([0, 0.25, 0.5, 0.75, 1, 1.25, 0, 0.25, 0.5, 0.75], "<f4").tobytes()
    record = json.loads(files[RECORD_FILE])
    assert record == {
        "base_digest": DIGEST,
        "base_name": "tiny",
        "format": "edgelora-adapter",
        "format_version": "1.0",
        "labels": None,
        "lora": LoraConfig(r=1, lora_alpha=2, target_modules=("0.attention.self.value",)).to_dict(),
        "sha256": hashlib.sha256(files[TENSORS_FILE]).hexdigest(),
        "task": "sentence-embedding",
        "training": {"steps": 7},
    }
    config = json.loads(files[CONFIG_FILE])
    assert config["target_modules"] == ["encoder.layer.0.attention.self.value"]
    assert (config["peft_type"], config["task_type"], config["r"]) == ("LORA", "FEATURE_EXTRACTION", 1)


def test_a_folder_without_a_record_needs_its_base_accepted(tmp_path: Path):
    adapter = trained()
    files = to_files(adapter)
    del files[RECORD_FILE]
    folder = put(tmp_path / "a", files)
    for manifest, accept in ((None, False), (MANIFEST, False), (None, True)):
        with pytest.raises(AdapterError, match="accept-base"):
            read_adapter(folder, manifest, accept_base=accept)
    loaded = read_adapter(folder, MANIFEST, accept_base=True)
    loaded.validate(MANIFEST)
    assert loaded.base_digest == DIGEST
    assert all(np.array_equal(t, adapter.tensors[n]) for n, t in loaded.tensors.items())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: str):
    values = np.asarray([[0.5, -2.0, 1.25, 0.0, 3.0, -0.125]], np.float32)
    half = values.astype("<f2").tobytes() if dtype == "F16" else (values.view("<u4") >> 16).astype("<u2").tobytes()
    header = json.dumps({f"{KEY}.lora_A.weight": {"dtype": dtype, "shape": [1, 6], "data_offsets": [0, 12]}}).encode()
    files = {
        CONFIG_FILE: to_files(trained())[CONFIG_FILE],
        TENSORS_FILE: len(header).to_bytes(8, "little") + header + half,
    }
    loaded = read_adapter(put(tmp_path / "a", files), MANIFEST, accept_base=True)
    tensor = loaded.tensors[f"{QUERY}.lora_A"]
    np.testing.assert_array_equal(tensor, values.T)
    assert tensor.dtype == np.float32
    assert tensor.flags.writeable


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensors_file(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(body) if length is None else length).to_bytes(8, "little") + body + data


GOOD = {f"{KEY}.lora_A.weight": entry("F32", [1, 6], 0, 24)}
DATA = bytes(24)
TWICE = json.dumps(GOOD).encode()[:-1] + b", " + json.dumps(GOOD).encode()[1:]
SAME_NAME = {
    "base_model.model.c.weight": entry("F32", [6], 0, 24),
    "base_model.model.modules_to_save.c.weight": entry("F32", [6], 0, 24),
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        tensors_file(GOOD, DATA)[:-1],
        tensors_file(GOOD, DATA + b"\0"),
        tensors_file(GOOD, DATA, length=2**63),
        tensors_file(GOOD, DATA, length=2**64 - 1),
        tensors_file(GOOD, DATA, length=90_000_000),
        tensors_file(GOOD, DATA, length=3),
        tensors_file(b"\xff\xfe" * 20, DATA),
        tensors_file(b"[" * 5000, DATA),
        tensors_file(b'{"__metadata__":{"format":1}}'),
        tensors_file(TWICE, DATA),
        tensors_file(SAME_NAME, DATA),
        tensors_file({f"{KEY}.lora_A.weight": entry("F32", [1, 2**62], 0, 24)}, DATA),
        tensors_file({f"{KEY}.lora_A.weight": entry("F32", [2**32, 2**32], 0, 24)}, DATA),
        tensors_file({f"{KEY}.lora_A.weight": entry("F32", [0, 2**62], 0, 0)}),
        tensors_file({f"{KEY}.lora_A.weight": entry("F32", [1] * 70, 0, 4)}, bytes(4)),
        tensors_file({f"{KEY}.lora_A.weight": entry("F32", [-1, 6], 0, 24)}, DATA),
        tensors_file({f"{KEY}.lora_A.weight": entry("F32", [1, 6], 24, 0)}, DATA),
        tensors_file({f"{KEY}.lora_A.weight": entry("F32", [1, 6], 8, 32)}, DATA + bytes(8)),
        tensors_file({f"{KEY}.lora_A.weight": entry("F64", [1, 3], 0, 24)}, DATA),
        tensors_file({f"{KEY}.lora_A.weight": entry("I32", [1, 6], 0, 24)}, DATA),
        tensors_file({f"{KEY}.lora_A.weight": entry("F8_E4M3", [4, 6], 0, 24)}, DATA),
        tensors_file({f"{KEY}.lora_A.weight": entry("NEW", [1, 6], 0, 24)}, DATA),
        tensors_file({f"{KEY}.lora_magnitude_vector.weight": entry("F32", [6], 0, 24)}, DATA),
        tensors_file({"../../etc/passwd": entry("F32", [6], 0, 24)}, DATA),
        tensors_file(GOOD, np.full(6, np.nan, np.float32).tobytes()),
        tensors_file(GOOD, np.full(6, -np.inf, np.float32).tobytes()),
    ],
)
def test_hostile_tensor_files_are_refused_by_name(tmp_path: Path, content: bytes):
    files = {CONFIG_FILE: to_files(trained())[CONFIG_FILE], TENSORS_FILE: content}
    with pytest.raises(AdapterError, match=TENSORS_FILE):
        read_adapter(put(tmp_path / "a", files), MANIFEST, accept_base=True)


def test_unknown_tensors_and_types_are_named_together(tmp_path: Path):
    header = {f"{KEY}.lora_A.weight": entry("F64", [1, 3], 0, 24), "x.lora_B": entry("F32", [6], 24, 48)}
    files = {CONFIG_FILE: to_files(trained())[CONFIG_FILE], TENSORS_FILE: tensors_file(header, bytes(48))}
    with pytest.raises(AdapterError, match=r"(?s)F64.*x\.lora_B|x\.lora_B.*F64"):
        read_adapter(put(tmp_path / "a", files), MANIFEST, accept_base=True)


def test_a_lying_header_costs_no_more_memory_than_the_file(tmp_path: Path):
    header = {f"{KEY}.lora_A.weight": entry("F32", [2**20, 2**20], 0, 2**42)}
    files = {CONFIG_FILE: to_files(trained())[CONFIG_FILE], TENSORS_FILE: tensors_file(header, DATA)}
    folder = put(tmp_path / "a", files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AdapterError):
        read_adapter(folder, MANIFEST, accept_base=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("name", [CONFIG_FILE, RECORD_FILE])
def test_halves_of_surrogate_pairs_are_refused_wherever_they_stand(tmp_path: Path, name: str):
    files = to_files(recorded())
    body = json.loads(files[name])
    for change in ({"target_modules": ["a\ud800"]}, {"training": {"\ud800": 1}}, {"\udfff": None}):
        folder = put(tmp_path / "a", files | {name: json.dumps(body | change).encode()})
        with pytest.raises(AdapterError, match=name):
            read_adapter(folder)


def test_reading_takes_memory_for_what_is_there_and_not_for_what_may_be(tmp_path: Path):
    folder = put(tmp_path / "a", to_files(trained()))
    tracemalloc.start()
    try:
        read_adapter(folder)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("missing", [CONFIG_FILE, TENSORS_FILE])
def test_a_missing_file_is_named(tmp_path: Path, missing: str):
    files = to_files(trained())
    del files[missing]
    with pytest.raises(AdapterError, match=missing):
        read_adapter(put(tmp_path / "a", files))


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(to_files(recorded())[RECORD_FILE]), **fields}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "JSON"),
        (b"[]", "object"),
        (changed(format="other"), "format"),
        (changed(format_version="2.0"), r"2\.0"),
        (changed(sha256="00"), "sha256"),
        (changed(labels=["a", "a", "b"]), "malformed"),
        (changed(labels=["a", 1, "b"]), "malformed"),
        (changed(labels=["\ud800"]), "not valid JSON"),
        (changed(labels="abc"), "malformed"),
        (changed(base_digest=None), "malformed"),
        (changed(training=[]), "malformed"),
        (changed(lora=None), "malformed"),
        (changed(lora={"r": 0}), "r must"),
        (changed(lora={"r": 3}), "disagrees"),
    ],
)
def test_a_bad_record_is_refused(tmp_path: Path, content: bytes, message: str):
    folder = put(tmp_path / "a", to_files(recorded()) | {RECORD_FILE: content})
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter(folder)
    assert str(folder) in str(caught.value)


def test_a_later_minor_version_is_read(tmp_path: Path):
    files = to_files(recorded()) | {RECORD_FILE: changed(format_version="1.9", more=1)}
    assert same(read_adapter(put(tmp_path / "a", files)), recorded())


def test_what_is_not_a_file_is_refused(tmp_path: Path):
    folder = put(tmp_path / "a", to_files(trained()))
    (folder / TENSORS_FILE).unlink()
    (folder / TENSORS_FILE).mkdir()
    with pytest.raises(AdapterError, match="not a file"):
        read_adapter(folder)


def test_a_folder_that_cannot_be_written_is_an_adapter_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot be written"):
        write_adapter(trained(), tmp_path / "file" / "a")


FILES = to_files(recorded())


@given(st.sampled_from(sorted(FILES)), st.data())
@example(TENSORS_FILE, None)
def test_damage_is_never_more_than_an_adapter_error(tmp_path_factory: pytest.TempPathFactory, name: str, data: Any):
    content = bytearray(FILES[name])
    if data is None:
        content.clear()
    elif data.draw(st.booleans(), label="truncate"):
        del content[data.draw(st.integers(0, len(content) - 1), label="length") :]
    else:
        for _ in range(data.draw(st.integers(1, 3), label="flips")):
            content[data.draw(st.integers(0, len(content) - 1), label="place")] ^= data.draw(st.integers(1, 255))
    folder = put(tmp_path_factory.mktemp("a"), FILES | {name: bytes(content)})
    for accept, files in ((False, FILES), (True, {})):
        if accept:
            (folder / RECORD_FILE).unlink()
        try:
            adapter = read_adapter(folder, MANIFEST, accept_base=accept)
            adapter.validate(MANIFEST)
            adapter.feeds(MANIFEST)
        except AdapterError:
            continue
        if files and name == TENSORS_FILE and bytes(content) != FILES[name]:
            pytest.fail("damaged tensors were accepted although their sha256 is known")


@given(st.binary(max_size=300))
def test_any_bytes_as_tensors_are_never_more_than_an_adapter_error(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes
):
    files = {CONFIG_FILE: FILES[CONFIG_FILE], TENSORS_FILE: len(tail).to_bytes(8, "little") + tail}
    with pytest.raises(AdapterError):
        read_adapter(put(tmp_path_factory.mktemp("a"), files), MANIFEST, accept_base=True).validate(
            replace(MANIFEST, points=())
        )
        if not tail:
            raise AdapterError("an empty adapter is none")


def test_the_reference_writer_gives_the_same_tensors(tmp_path: Path):
    adapter = trained()
    theirs = save({f"{KEY}.lora_A.weight": np.ascontiguousarray(adapter.tensors[f"{QUERY}.lora_A"].T)})
    files = {CONFIG_FILE: FILES[CONFIG_FILE], TENSORS_FILE: theirs}
    loaded = read_adapter(put(tmp_path / "a", files), MANIFEST, accept_base=True)
    np.testing.assert_array_equal(loaded.tensors[f"{QUERY}.lora_A"], adapter.tensors[f"{QUERY}.lora_A"])
