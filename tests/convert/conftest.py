"""One small transformer, and a bundle of it per task, for the whole session. Tests copy what they change."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest

from edgelora.bundle import Bundle
from tests.convert import networks
from tests.convert.bundles import to_bundle
from tests.convert.real_files import unpacked


@pytest.fixture(scope="session")
def transformer_file(tmp_path_factory) -> Path:
    return networks.save(networks.transformer(17), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def task_bundle(transformer_file, tmp_path_factory):
    """task_bundle(task, **options): the transformer's bundle, converted once."""

    @functools.cache
    def convert(task: str, **options: str) -> Bundle:
        return to_bundle(transformer_file, tmp_path_factory.mktemp("bundle"), task=task, **options)

    return convert


@pytest.fixture
def bundle_copy(task_bundle, tmp_path):
    """bundle_copy(task, **options): a copy that the test may damage; returns its path."""

    def copy(task: str = "sequence-classification", **options: str) -> Path:
        return Path(shutil.copytree(task_bundle(task, **options).path, tmp_path / "copy.edgelora"))

    return copy


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of MLPerf Tiny's TFLite files."""
    return unpacked("mlperf_tiny_tflite.zip", tmp_path_factory.mktemp("tiny"))
