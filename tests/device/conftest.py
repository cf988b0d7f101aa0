"""One tiny real base for all device tests, converted once per task and session."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelora.runtime import Model
from tests.device import tiny
from tests.device.command import QUICK, Command

CLASSIFICATION = "sequence-classification"


@pytest.fixture(scope="session")
def base() -> Any:
    """The torch module that the bundles were made of."""
    return tiny.module()


@pytest.fixture(scope="session")
def bundle_of(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a task; all share the base. Read-only: copy one to damage it."""
    folder = tmp_path_factory.mktemp("bundles")
    return functools.cache(lambda task: tiny.write_bundle(base, task, folder / f"{task}.edgelora"))


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path]) -> Path:
    """The classification bundle."""
    return bundle_of(CLASSIFICATION)


@pytest.fixture
def damaged(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the classification bundle to spoil."""
    return Path(shutil.copytree(bundle, tmp_path / "copy.edgelora"))


@pytest.fixture
def open_model(bundle_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., Model]:
    """Opens a task's model; the same `store` is the same store of this test."""

    def opened(task: str = CLASSIFICATION, store: str = "store") -> Model:
        return Model.open(bundle_of(task), tmp_path / store)

    return opened


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def home(run: Command, bundle: Path, store: Path, data: Path) -> tuple[str | Path, ...]:
    """Options that name a trained adapter: BUNDLE --store DIR --adapter NAME."""
    options = (bundle, "--store", store, "--adapter", "home")
    assert run("train", *options, "--data", data, *QUICK)[0] == 0
    return options
