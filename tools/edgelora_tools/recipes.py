"""Recipes: where a base model comes from, checked to the byte before it is used."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from edgelora.errors import ConversionError
from edgelora_tools.normalize import onnx_errors
from edgelora_tools.sources import Source, open_source

NETWORK = "network.py"


@dataclass(frozen=True)
class RecipeFile:
    """A file inside a wheel of a package registry."""

    package: str
    version: str
    licence: str
    member: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """A base model: its files, and what it is converted as.

    `source` is one of the files, "." for the folder of all of them, or `network.py:FACTORY`: a function of that
    folder in the recipe's own file, that makes a torch module. `target_modules` None leaves the choice to `convert`.
    `image` are fields of `edgelora.media.images.ImageSettings` for a model that takes pictures, `sound` those of
    `SoundOptions` for one that hears.
    """

    id: str
    name: str
    description: str
    licence: str
    source: str
    task: str
    pooling: str
    target_modules: tuple[str, ...] | None
    files: tuple[RecipeFile, ...]
    image: Mapping[str, Any] = field(default_factory=dict)
    sound: Mapping[str, Any] = field(default_factory=dict)

    @property
    def factory(self) -> str | None:
        """The name of the function that makes the torch module, where the source is one."""
        file, _, name = self.source.partition(":")
        return name if file == NETWORK and name else None


def recipe_folder() -> Path:
    """Where the recipes lie: inside the installed package, or at the top of a checkout."""
    return data_folder("models")


def data_folder(name: str) -> Path:
    """A folder of data that the wheel carries inside `edgelora_tools` and a checkout at its top."""
    package = Path(__file__).parent
    for candidate in (package / name, package.parents[1] / name):
        if candidate.is_dir():
            return candidate
    raise ConversionError(f"the folder {name!r} is missing from this installation: install edgelora again")


def load_recipe(recipe_id: str) -> Recipe:
    """Read a recipe by its id.

    Raises:
        ConversionError: there is none, and the known ones are named; or it is damaged.
    """
    path = recipe_folder() / recipe_id / "recipe.json"
    if not path.is_file() or Path(recipe_id).name != recipe_id:
        known = ", ".join(sorted(p.parent.name for p in recipe_folder().glob("*/recipe.json")))
        raise ConversionError(f"no recipe {recipe_id!r}; there are {known}")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(
            RecipeFile(f["package"], f["version"], f["licence"], f["member"], f["as"], f["sha256"])
            for f in body.pop("files")
        )
        chosen = body["target_modules"]
        targets = None if chosen is None else tuple(chosen)
        return Recipe(id=recipe_id, files=files, **body | {"target_modules": targets})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: not a recipe ({error!r}); install edgelora again") from error


def cache_folder() -> Path:
    """`$EDGELORA_CACHE`, else `edgelora` in the user's cache folder."""
    configured = os.environ.get("EDGELORA_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgelora"


def open_recipe(
    recipe: Recipe,
    exporter: str = "dynamo",
    tokenizer: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    task: str | None = None,
    check_tokenizer: bool = True,
) -> Source:
    """The recipe's model as a source for its task, or another, its files fetched if need be.

    Raises:
        ConversionError: see `fetch` and `open_source`.
    """
    path = fetch(recipe, progress)
    source = _opened(recipe, path, exporter, tokenizer, task or recipe.task, check_tokenizer)
    told = {"image": dict(recipe.image), "sound": dict(recipe.sound)}
    return replace(source, facts={**source.facts, **{name: one for name, one in told.items() if one}})


def _opened(
    recipe: Recipe, path: Path, exporter: str, tokenizer: Path | None, task: str, check_tokenizer: bool
) -> Source:
    if recipe.factory is None:
        return open_source(str(path), exporter, tokenizer, task, check_tokenizer)
    from edgelora_tools.sources.torch_export import made_source, require_torch

    require_torch()
    what = f"recipe {recipe.id}: {recipe.source}"
    return made_source(getattr(network(recipe.id), recipe.factory), what, recipe.id, exporter, path)


def network(recipe_id: str) -> ModuleType:
    """The recipe's `network.py`.

    Raises:
        ConversionError: it has none, or it cannot be imported.
    """
    path = recipe_folder() / recipe_id / NETWORK
    spec = importlib.util.spec_from_file_location(f"edgelora_recipe_{recipe_id.replace('-', '_')}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConversionError(f"recipe {recipe_id} has no {NETWORK}: install edgelora again")
    module = importlib.util.module_from_spec(spec)
    with onnx_errors(f"{path} cannot be imported"):
        spec.loader.exec_module(module)
    return module


def fetch(recipe: Recipe, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Make the recipe's files present in the cache and return the one that is the source, or their folder.

    Each file is verified against its sha256, cached ones too.

    Raises:
        ConversionError: the registry cannot be reached, or a file is not the one that the recipe names.
    """
    folder = cache_folder() / "models" / recipe.id
    folder.mkdir(parents=True, exist_ok=True)
    missing = [f for f in recipe.files if not _is_intact(folder / f.name, f.sha256)]
    for package, version in dict.fromkeys((f.package, f.version) for f in missing):
        progress(f"downloading {package} {version}")
        wanted = [f for f in missing if (f.package, f.version) == (package, version)]
        with tempfile.TemporaryDirectory(prefix="edgelora-") as temporary:
            _extract(_download(package, version, Path(temporary)), wanted, folder)
    return folder if recipe.source == "." or recipe.factory else folder / recipe.source


def _download(package: str, version: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        f"{package}=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConversionError(f"pip cannot download {package}=={version}: {last}")
    return wheels[0]


def _extract(wheel: Path, files: list[RecipeFile], folder: Path) -> None:
    try:
        archive = zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise ConversionError(f"{files[0].package} {files[0].version}: what pip downloaded is not a wheel") from error
    with archive:
        for file in files:
            partial = folder / f"{file.name}.partial"
            try:
                with archive.open(file.member) as source, partial.open("wb") as target:
                    shutil.copyfileobj(source, target)
            except KeyError as error:
                raise ConversionError(f"{file.package} {file.version} has no {file.member}") from error
            if not _is_intact(partial, file.sha256):
                partial.unlink()
                raise ConversionError(
                    f"{file.package} {file.version}: {file.member} does not have the recipe's sha256; nothing was kept"
                )
            partial.replace(folder / file.name)


def _is_intact(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
