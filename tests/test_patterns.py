"""Patterns of settings: they find what `re` finds, and none takes longer than a bounded number of steps."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.adapter import CONFIG_FILE, read_adapter, to_files
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, ConfigError
from edgelora.patterns import LONGEST, fullmatch, pattern_problem, suffix_match
from edgelora.targets import select_points
from tests.test_adapter import trained
from tests.test_adapter_files import put
from tests.tiny_manifest import MANIFEST

ATOMS = ["a", "b", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", r"[^\d.]", r"\b", "^", "$", "", "(?i:A)", "0"]


def extended(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    counts = st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{0,2}", "{1,}", "{3}?"])
    return (
        st.tuples(parts, parts).map("".join)
        | st.tuples(parts, parts).map(lambda two: f"(?:{two[0]}|{two[1]})")
        | st.tuples(parts, counts).map(lambda two: f"({two[0]}){two[1]}")
        | parts.map(lambda one: f"(?={one})")
        | parts.map(lambda one: f"(?!{one})")
    )


patterns = st.recursive(st.sampled_from(ATOMS), extended, max_leaves=8)
names = st.text("ab0.A", max_size=7)


@settings(max_examples=400, deadline=None)
@given(patterns, names)
def test_a_pattern_finds_what_python_finds(pattern: str, name: str):
    assert fullmatch(pattern, name) == (re.fullmatch(pattern, name) is not None)
    assert suffix_match(pattern, name) == (re.match(rf"(.*\.)?({pattern})\Z", name) is not None)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [(r"(?<=a)b", "b"), (r"a(?<=a)b", "ab"), (r"a(?<!a)b", "ab"), (r"(?<!x)ab", "ab"), (r"(?i)QUERY", "query")],
)
def test_conditions_on_what_stands_before(pattern: str, name: str):
    assert fullmatch(pattern, name) == (re.fullmatch(pattern, name) is not None)


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", r"(a)?(?(1)b|c)", "(?>a+)b", "a++b", "(", "a{2,1}", "x" * (LONGEST + 1), "(" * 900]
)
def test_what_has_no_bound_or_no_meaning_is_refused(pattern: str):
    assert pattern_problem(pattern) is not None
    with pytest.raises(ConfigError):
        LoraConfig(target_modules=pattern)
    with pytest.raises(ConfigError):
        LoraConfig(rank_pattern={pattern: 1})


HOSTILE = [
    r"(a+)+b",
    r"(.*)*!",
    r"(.*.*)*!",
    r"((((((.*)*)*)*)*)*)*!",
    r"(\w|\w|\w\w)*!",
    r"(\w|\w)" * 40 + "!",
    r"(?:.*a?){50}!",
    r"(((.{1,30}){1,30}){1,30}){1,30}!",
    r"(?=(.*)*!)" * 20,
    ".*" * 300 + "!",
]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_no_pattern_of_an_adapter_takes_long(tmp_path: Path, pattern: str):
    """Settings of an adapter that somebody sends: read, checked against the bundle, and trained further."""
    files = to_files(trained())
    del files["edgelora.json"]
    body = json.loads(files[CONFIG_FILE])
    started = time.perf_counter()
    for name, value in (("rank_pattern", {pattern: 2}), ("alpha_pattern", {pattern: 2}), ("exclude_modules", pattern)):
        folder = put(tmp_path / name, files | {CONFIG_FILE: json.dumps(body | {name: value}).encode()})
        try:
            adapter = read_adapter(folder, MANIFEST, accept_base=True)
            adapter.validate(MANIFEST)
            select_points(MANIFEST.points, adapter.config)
        except (AdapterError, ConfigError):
            continue
    with contextlib.suppress(ConfigError):
        select_points(MANIFEST.points, LoraConfig(target_modules=pattern))
    assert time.perf_counter() - started < 30, "what has no bound takes years"


def test_modules_to_save_are_names_and_no_patterns():
    for hostile in ("(", "(.*)*!", "["):
        assert select_points(MANIFEST.points, LoraConfig(modules_to_save=(hostile,))) == MANIFEST.points
    chosen = select_points(MANIFEST.points, LoraConfig(modules_to_save=("1.attention",)))
    assert {point.layer for point in chosen} == {0}


def test_more_patterns_than_anybody_needs_are_refused():
    with pytest.raises(ConfigError, match="64"):
        LoraConfig(rank_pattern={f"a*{i}": 1 for i in range(65)})
    with pytest.raises(ConfigError, match="10,000"):
        LoraConfig(rank_pattern={f"a{i}": 1 for i in range(10_001)})
    LoraConfig(rank_pattern={f"a{i}": 1 for i in range(1000)})
