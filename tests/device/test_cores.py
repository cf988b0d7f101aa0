"""The cores of this process: what it is bound to, within what its control groups grant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgelora.cores import available_cores

BOUND = len(os.sched_getaffinity(0))


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 1), ("100000 100000", 1), ("150000 100000", 2), ("max 100000", 10**6)]
)
def test_the_group_of_version_2_or_one_around_it(tmp_path: Path, quota: str, expected: int) -> None:
    write(tmp_path / "sys" / "app", cpu__max=quota)
    write(tmp_path / "sys" / "app" / "worker", cpu__max="max 100000")
    write(tmp_path, own="0::/app/worker\n")
    assert available_cores(tmp_path / "sys", tmp_path / "own") == min(BOUND, expected)


def test_the_group_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "sys" / "cpu" / "app", cpu__cfs_quota_us="100000\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "sys" / "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    write(tmp_path, own="4:memory:/app\n3:cpu,cpuacct:/app\n0::/\n")
    assert available_cores(tmp_path / "sys", tmp_path / "own") == 1


@pytest.mark.parametrize("text", ["", "0::/app\n", "0::/app\n3:cpu:/app\n"])
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path / "sys" / "app", cpu__max="nonsense")
    write(tmp_path, own=text)
    assert available_cores(tmp_path / "sys", tmp_path / "own") == BOUND
    assert available_cores(tmp_path / "sys", tmp_path / "absent") == BOUND


def test_bound_to_one_core() -> None:
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, all_of_them)
