"""What the documents say of the project is so: code parses, commands and their options exist, links lead somewhere."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelora.cli.main import parsed
from edgelora.errors import ConfigError

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:edgelora|tools|tests|benchmarks|examples|docs|models)/[\w./*-]+)`")
BETWEEN = frozenset("|&;<>")


def blocks(language: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path in DOCUMENTS:
        texts = [text for kind, text in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]
        found += [(f"{path.relative_to(ROOT)}, block {i}", text) for i, text in enumerate(texts, 1)]
    return found


def test_python_of_the_documents_parses():
    found = blocks("python")
    assert found
    for where, text in found:
        try:
            ast.parse(text.replace("…", "..."))
        except SyntaxError as error:
            pytest.fail(f"{where}: {error}")


def test_bash_of_the_documents_parses():
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    for where, text in blocks("bash"):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{where}: {done.stderr}"


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Where the documents call a program from the shell, and its words."""
    for where, text in [*blocks("bash"), *blocks("")]:
        for line in text.replace("\\\n", " ").splitlines():
            if program not in line:
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars="".join(BETWEEN))
            lexer.whitespace_split = True
            called: list[list[str]] = [[]]
            for word in lexer:
                if set(word) <= BETWEEN:
                    called.append([])
                else:
                    called[-1].append(word)
            yield from ((where, words[1:]) for words in called if words[:1] == [program])


def test_commands_of_the_documents_parse():
    found = list(commands("edgelora"))
    assert found
    for where, words in found:
        try:
            parsed(words)
        except ConfigError as error:
            pytest.fail(f"{where}: edgelora {shlex.join(words)}: {error}")
        except SystemExit as stop:  # --help
            assert not stop.code, where


def modules() -> list[tuple[str, str, list[str]]]:
    """Where the documents run a module of the project, its name and its words."""
    known = ("benchmarks", "tests")
    called = [(where, words[1], words[2:]) for where, words in commands("python") if words[0] == "-m"]
    return [one for one in called if one[1].split(".")[0] in known]


def test_benchmarks_of_the_documents_parse(capsys: pytest.CaptureFixture[str]):
    found = [one for one in modules() if one[1].startswith("benchmarks")]
    assert found
    for where, name, words in found:
        module = importlib.import_module("benchmarks.__main__" if name == "benchmarks" else name)
        parser: argparse.ArgumentParser = module.parser()
        try:
            parser.parse_args(words)
        except SystemExit as stop:
            assert not stop.code, f"{where}: {name} {shlex.join(words)}: {capsys.readouterr().err}"


def test_scripts_of_the_documents_have_their_options():
    called = [(where, words[0], words) for where, words in commands("python") if words[0].startswith("examples/")]
    called += [(where, f"-m{name}", words) for where, name, words in modules() if name.startswith("tests")]
    assert called
    for where, script, words in called:
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{where}: {script}: {done.stderr}"
        options = [word for word in words if word.startswith("--")]
        missing = [option for option in options if not re.search(rf"{option}(?![\w-])", done.stdout)]
        assert not missing, f"{where}: {script} has no {', '.join(missing)}"


def test_extras_of_the_documents_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [(where, word) for where, words in commands("pip") for word in words if word.endswith("]")]
    assert named
    for where, word in named:
        unknown = set(word[word.index("[") + 1 : -1].split(",")) - set(known)
        assert not unknown, f"{where}: {word}"


def test_targets_of_the_documents_exist():
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [(where, target) for where, text in blocks("") for target in re.findall(r"^make (\S+)", text, re.MULTILINE)]
    assert named
    assert not [one for one in named if one[1] not in known]


def test_links_of_the_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            name, _, part = target.partition("#")
            there = path.parent / name if name else path
            assert there.exists(), f"{path.relative_to(ROOT)}: {target}"
            assert not part or part in parts_of(there), f"{path.relative_to(ROOT)}: {target}"


def parts_of(path: Path) -> set[str]:
    """What links call the sections of a document."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_files_that_the_documents_name_exist():
    for path in DOCUMENTS:
        for name in NAMED.findall(path.read_text(encoding="utf-8")):
            pattern = re.sub(r"\b[A-Z]+\b", "*", name.rstrip("/"))  # NAME is any
            assert any(ROOT.glob(pattern)), f"{path.relative_to(ROOT)}: {name}"
