"""What all tests share: hypothesis without deadlines, for machines that are slow or busy; a tiny language model."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("edgelora", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgelora")


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tied embeddings and shared heads, as a Hugging Face directory."""
    from tests.language_models import model_folder

    return model_folder("llama", tmp_path_factory.mktemp("language") / "llama")


@pytest.fixture(scope="session")
def language_source(language_folder: Path) -> Any:
    """It as a source for text-generation."""
    from edgelora_tools.sources import open_source

    return open_source(str(language_folder), task="text-generation")


@pytest.fixture(scope="session")
def language_bundle(language_source: Any, language_folder: Path) -> Path:
    """Its bundle, adapted at q_proj and v_proj. Not to be written to: copy it."""
    from edgelora_tools.compile import ConvertOptions, convert

    path = language_folder.with_suffix(".edgelora")
    convert(language_source, path, ConvertOptions(task="text-generation"))
    return path
