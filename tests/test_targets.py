"""target_modules, exclude_modules and layers_to_transform choose the points that PEFT would choose."""

from __future__ import annotations

import re
from typing import Any

import peft
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists

from edgelora.config import LoraConfig, Patterns
from edgelora.errors import ConfigError
from edgelora.manifest import InsertionPoint
from edgelora.targets import nearest, select_points

BERT = [
    f"encoder.layer.{i}.{name}"
    for i in (0, 1, 2, 11)
    for name in ("attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense")
]
OTHERS = [
    "pooler.dense",
    "query",
    "h.1.experts.3.q",
    "model.h.0.experts.1.query",
    "classifier",
    "a.classifier.dense",
    "x_query",
]
IDS = BERT + OTHERS


def points(ids: list[str]) -> list[InsertionPoint]:
    return [InsertionPoint(name, "MatMul", 4, 4) for name in ids]


def chosen(config: LoraConfig, ids: list[str] = IDS) -> list[str]:
    return [point.id for point in select_points(points(ids), config)]


def by_peft(config: LoraConfig, ids: list[str] = IDS) -> list[str]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    theirs = peft.LoraConfig(
        target_modules=plain(config.target_modules),
        exclude_modules=plain(config.exclude_modules),
        layers_to_transform=plain(config.layers_to_transform),
        layers_pattern=plain(config.layers_pattern),
        modules_to_save=plain(config.modules_to_save),
    )
    return [name for name in ids if check_target_module_exists(theirs, name)]


names = st.sampled_from(
    [
        "query",
        "value",
        "dense",
        "output.dense",
        "self.query",
        "layer.1.attention.self.query",
        "q",
        "classifier",
        *IDS[:3],
    ]
)
some_names = st.lists(names, min_size=1, max_size=4, unique=True).map(tuple)
regexes = st.sampled_from(
    [r".*query", r".*\.(query|value)", r"encoder\.layer\.[01]\..*", r"query", r".*", r".*layer\.1\d\..*"]
)


@given(
    some_names,
    st.none() | some_names | regexes,
    st.none() | st.just(()) | st.integers(0, 12) | st.lists(st.integers(0, 12), min_size=1, max_size=3).map(tuple),
    st.none() | st.sampled_from(["layer", "h", "experts", ("layer", "h"), ("h",)]),
    st.none() | st.sampled_from([("classifier",), ("pooler", "intermediate")]),
)
def test_names_choose_what_peft_chooses(
    targets: Patterns,
    exclude: Patterns,
    layers: tuple[int, ...] | int | None,
    layers_pattern: tuple[str, ...] | str | None,
    saved: tuple[str, ...] | None,
):
    assume(layers is not None or layers_pattern is None)
    config = LoraConfig(
        target_modules=targets,
        exclude_modules=exclude,
        layers_to_transform=layers,
        layers_pattern=layers_pattern,
        modules_to_save=saved,
    )
    expected = by_peft(config)
    if expected:
        assert chosen(config) == expected
    else:
        with pytest.raises(ConfigError):
            chosen(config)


@given(regexes, st.none() | regexes | some_names)
def test_regular_expressions_choose_what_peft_chooses(targets: str, exclude: Patterns):
    config = LoraConfig(target_modules=targets, exclude_modules=exclude)
    expected = by_peft(config)
    if expected:
        assert chosen(config) == expected
    else:
        with pytest.raises(ConfigError):
            chosen(config)


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_all_points(targets: str | None):
    assert chosen(LoraConfig(target_modules=targets)) == IDS
    assert chosen(LoraConfig(target_modules=targets, exclude_modules=("dense",))) == [
        name for name in IDS if name.rsplit(".")[-1] != "dense"
    ]
    assert chosen(LoraConfig(target_modules=targets, layers_to_transform=11), BERT) == BERT[-4:]


def test_all_linear_of_a_network_of_convolutions_is_refused():
    layers = [InsertionPoint(name, "Conv", 4, 4, kernel=(3, 3)) for name in ("stem", "body.0")]
    with pytest.raises(ConfigError, match=r"all-linear.*convolutions.*'re:\.\*'"):
        select_points(layers, LoraConfig(target_modules="all-linear"))
    linear = InsertionPoint("head", "MatMul", 4, 4)
    assert select_points([*layers, linear], LoraConfig(target_modules="all-linear")) == (linear,)
    assert select_points([], LoraConfig(target_modules="all-linear")) == ()


def test_no_targets_choose_no_point():
    assert chosen(LoraConfig(target_modules=())) == []


def test_every_pattern_that_matches_nothing_is_named_with_the_nearest_names():
    with pytest.raises(ConfigError) as caught:
        chosen(
            LoraConfig(
                target_modules=("qeury", "value", "attention.self.valu"), exclude_modules=("intermediat.dense",)
            ),
            BERT,
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert re.search(r"target_modules: 'qeury' .* query", lines[0])
    assert re.search(r"'attention.self.valu' .* attention\.self\.value", lines[1])
    assert re.search(r"exclude_modules: 'intermediat.dense' .* intermediate\.dense", lines[2])


def test_what_stands_alone_is_told_among_names():
    points = [InsertionPoint(name, "MatMul", 4, 4) for name in BERT]
    for alone in ("all-linear", "re:.*query"):
        with pytest.raises(ConfigError, match=rf"target_modules: {re.escape(alone)} stands alone, without other names"):
            select_points(points, LoraConfig(target_modules=(alone, "query")))


def test_a_regular_expression_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match="self_attention"):
        chosen(LoraConfig(target_modules=r".*self_attention.*"), BERT)


def test_restrictions_that_leave_nothing_are_named():
    with pytest.raises(ConfigError, match="layers_to_transform"):
        chosen(LoraConfig(target_modules=("query",), layers_to_transform=7), BERT)


def test_without_a_similar_name_the_listing_is_pointed_at():
    assert nearest("zzzzzz", BERT) == []
    with pytest.raises(ConfigError, match="edgelora points"):
        chosen(LoraConfig(target_modules=("zzzzzz",)), BERT)
