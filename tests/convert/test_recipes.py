"""Recipes: fetched by pip from a folder of wheels, checked to the byte, cached; what is not the recipe's is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import zipfile

import pytest

from edgelora.cli.main import main
from edgelora.errors import ConversionError
from edgelora_tools import recipes
from edgelora_tools.recipes import fetch, load_recipe
from tests.convert import networks

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="recipes are fetched by pip")
PACKAGE, VERSION, MEMBER = "edgelora-test-model", "1.2.3", "edgelora_test_model/model/base.onnx"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder of wheels that pip uses instead of the network, a folder of recipes, and an empty cache."""
    wheels, folder = tmp_path / "wheels", tmp_path / "models"
    wheels.mkdir()
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("EDGELORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recipes, "recipe_folder", lambda: folder)
    return wheels, folder


def write_wheel(wheels, content, member=MEMBER):
    stem = PACKAGE.replace("-", "_")
    info = f"{stem}-{VERSION}.dist-info"
    with zipfile.ZipFile(wheels / f"{stem}-{VERSION}-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def write_recipe(folder, content, source="base.onnx", target_modules=("second",), **changes):
    file = {
        "package": PACKAGE,
        "version": VERSION,
        "licence": "Apache-2.0",
        "member": MEMBER,
        "as": "base.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    body = {
        "name": "Test base",
        "description": "a small network",
        "licence": "Apache-2.0",
        "source": source,
        "task": "regression",
        "pooling": "pooler",
        "target_modules": target_modules,
        "files": [file | changes],
    }
    (folder / "test-base").mkdir(exist_ok=True)
    (folder / "test-base" / "recipe.json").write_text(json.dumps(body))


@pytest.fixture
def content():
    return networks.perceptron(17).SerializeToString()


@needs_pip
def test_fetch_convert_and_cache(registry, content, tmp_path, capsys):
    wheels, folder = registry
    write_wheel(wheels, content)
    write_recipe(folder, content)
    command = ["convert", "recipe:test-base", "-o", str(tmp_path / "out.edgelora"), "--json"]
    assert main(command) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["name"], manifest["task"]) == ("Test base", "regression")
    assert [p["id"] for p in manifest["points"]] == ["second"]
    assert manifest["verification"]["passed"]
    next(wheels.iterdir()).unlink()  # from here on only the cache can serve
    path = fetch(load_recipe("test-base"), progress=lambda message: pytest.fail(message))
    assert path.read_bytes() == content
    path.write_bytes(content[:-1])  # a cache that was damaged is not used
    with pytest.raises(ConversionError, match=f"pip cannot download {PACKAGE}=={VERSION}"):
        fetch(load_recipe("test-base"))
    write_wheel(wheels, content)
    assert fetch(load_recipe("test-base")).read_bytes() == content


@needs_pip
def test_other_bytes_are_refused(registry, content, tmp_path):
    wheels, folder = registry
    write_wheel(wheels, content + b"\0")
    write_recipe(folder, content)
    with pytest.raises(ConversionError, match=r"base\.onnx does not have the recipe's sha256; nothing was kept"):
        fetch(load_recipe("test-base"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert main(["convert", "recipe:test-base", "-o", str(tmp_path / "out.edgelora")]) == 2


@needs_pip
def test_a_wheel_without_the_file(registry, content):
    wheels, folder = registry
    write_wheel(wheels, content, member="elsewhere/base.onnx")
    write_recipe(folder, content)
    with pytest.raises(ConversionError, match=re.escape(f"{PACKAGE} {VERSION} has no {MEMBER}")):
        fetch(load_recipe("test-base"))


@needs_pip
def test_a_version_that_does_not_exist(registry, content, capsys):
    wheels, folder = registry
    write_wheel(wheels, content)
    write_recipe(folder, content, version="9.9")
    assert main(["convert", "recipe:test-base", "-o", "unused"]) == 2
    assert f"pip cannot download {PACKAGE}==9.9" in capsys.readouterr().err


NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.first.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))

    def forward(self, image):
        places = self.first(image)
        return {"places": places, "pooled": places.mean((2, 3))}

def pooled(folder):
    return Net(folder), {"image": torch.zeros(2, 3, 5, 6)}
"""


@needs_pip
def test_a_recipe_with_a_network_of_its_own(registry, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    wheels, folder = registry
    kernel = torch.nn.Conv2d(3, 4, 3)
    torch.save(kernel.state_dict(), tmp_path / "weights.pth")
    weights = (tmp_path / "weights.pth").read_bytes()
    write_wheel(wheels, weights, member="model/weights.pth")
    changes = {"member": "model/weights.pth", "as": "weights.pth"}
    write_recipe(folder, weights, source="network.py:pooled", target_modules=None, **changes)
    command = ["convert", "recipe:test-base", "-o", str(tmp_path / "out.edgelora"), "--json"]
    assert main(command) == 2
    assert "recipe test-base has no network.py" in capsys.readouterr().err
    (folder / "test-base" / "network.py").write_text(NETWORK)
    assert main(command) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert [p["id"] for p in manifest["points"]] == ["first"]
    assert [x["name"] for x in manifest["inputs"]] == ["image"]
    assert manifest["source"]["outputs"] == ["pooled"]
    assert manifest["verification"]["passed"]
    (folder / "test-base" / "network.py").write_text("def pooled(:")
    assert main([*command, "--overwrite"]) == 2
    assert "network.py cannot be imported" in capsys.readouterr().err


def test_a_damaged_wheel(registry, content, monkeypatch, tmp_path):
    """pip may hand over what is no archive."""
    _, folder = registry
    write_recipe(folder, content)
    wheel = tmp_path / "broken.whl"
    wheel.write_bytes(b"PK\x03\x04 cut")
    monkeypatch.setattr(recipes, "_download", lambda *_: wheel)
    with pytest.raises(ConversionError, match=f"{PACKAGE} {VERSION}.*not a wheel"):
        fetch(load_recipe("test-base"))


@pytest.mark.parametrize("name", ["nothing", "", "..", "../models/test-base", "test-base/", "."])
def test_unknown_recipes_name_the_known_ones(name, registry, content, capsys):
    _, folder = registry
    write_recipe(folder, content)
    with pytest.raises(ConversionError, match="there are test-base"):
        load_recipe(name)
    assert main(["convert", f"recipe:{name}", "-o", "unused"]) == 2
    assert "test-base" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"files": [{"package": "p"}], "name": "x"}'])
def test_damaged_recipes_are_named(text, registry, content):
    _, folder = registry
    write_recipe(folder, content)
    (folder / "test-base" / "recipe.json").write_text(text)
    with pytest.raises(ConversionError, match=r"recipe\.json"):
        load_recipe("test-base")


def test_the_recipes_of_this_project_are_complete():
    """Every file has a package, an exact version, a licence and a digest; the source is among the files."""
    names = [path.parent.name for path in recipes.recipe_folder().glob("*/recipe.json")]
    assert {"minilm-l3", "mobilenetv2"} <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.files
        assert recipe.licence
        if recipe.factory is None:
            assert recipe.source == "." or recipe.source in {f.name for f in recipe.files}
        else:
            assert callable(getattr(recipes.network(name), recipe.factory))
        for file in recipe.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert re.fullmatch(r"[0-9][0-9a-z.]*", file.version)
            assert file.licence
            assert "/" not in file.name
