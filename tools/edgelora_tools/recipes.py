"""Recipes: where a base model comes from, checked to the byte before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgelora.errors import ConversionError


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
    """A base model: its files, and what it is converted as."""

    id: str
    name: str
    description: str
    licence: str
    source: str
    task: str
    pooling: str
    target_modules: tuple[str, ...]
    files: tuple[RecipeFile, ...]


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
        return Recipe(id=recipe_id, files=files, **body | {"target_modules": tuple(body["target_modules"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: not a recipe ({error!r}); install edgelora again") from error


def cache_folder() -> Path:
    """`$EDGELORA_CACHE`, else `edgelora` in the user's cache folder."""
    configured = os.environ.get("EDGELORA_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgelora"


def fetch(recipe: Recipe, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Make the recipe's files present in the cache and return the source for `open_source`.

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
    return folder if recipe.source == "." else folder / recipe.source


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
