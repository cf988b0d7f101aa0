"""LoRA settings: PEFT's pattern semantics, the way to and from adapter_config.json, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, ConfigError

IDS = [f"encoder.layer.{i}.attention.self.{n}" for i in (0, 1, 10) for n in ("query", "value")] + ["pooler.dense"]
PATTERNS = [
    "query",
    "value",
    "self.query",
    r"layer\.1\..*",
    "layer.1.attention.self.query",
    "l",
    "dense",
    r"e.*\d.*",
    "y",
]


@given(
    st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 64)),
    st.dictionaries(st.sampled_from(PATTERNS), st.floats(0.5, 64)),
    st.booleans(),
    st.sampled_from(IDS),
)
def test_rank_and_scale_follow_peft(ranks: dict[str, int], alphas: dict[str, float], rslora: bool, point: str):
    config = LoraConfig(r=8, lora_alpha=12, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=rslora)
    rank = ranks.get(get_pattern_key(list(ranks), point), 8)
    alpha = alphas.get(get_pattern_key(list(alphas), point), 12)
    assert config.rank(point) == rank
    assert config.scale(point) == alpha / (math.sqrt(rank) if rslora else rank)


def test_defaults_are_pefts():
    theirs = peft.LoraConfig()
    for name, value in asdict(LoraConfig()).items():
        assert getattr(theirs, name) == value, name


@given(
    st.builds(
        LoraConfig,
        r=st.integers(1, 512),
        lora_alpha=st.floats(0.1, 1e6) | st.integers(1, 64),
        target_modules=st.none() | st.just("all-linear") | st.lists(st.sampled_from(IDS)).map(tuple),
        exclude_modules=st.none() | st.just(".*key") | st.lists(st.sampled_from(IDS)).map(tuple),
        lora_dropout=st.floats(0, 0.99),
        layers_to_transform=st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9)).map(tuple),
        layers_pattern=st.none() | st.just("layer") | st.just(("layer", "h")),
        rank_pattern=st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 64)),
        alpha_pattern=st.dictionaries(st.sampled_from(PATTERNS), st.floats(0.5, 64)),
        use_rslora=st.booleans(),
        modules_to_save=st.none() | st.just(("classifier",)),
    )
)
def test_settings_survive_adapter_config_json(config: LoraConfig):
    text = json.dumps(config.to_peft("SEQ_CLS"))
    assert LoraConfig.from_peft(json.loads(text), "adapter_config.json") == config


def test_peft_reads_what_we_write(tmp_path):
    config = LoraConfig(r=4, lora_alpha=8.0, target_modules=("query",), rank_pattern={"value": 2}, use_rslora=True)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config.to_peft("SEQ_CLS")))
    theirs = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert isinstance(theirs, peft.LoraConfig)
    assert (theirs.r, theirs.lora_alpha, theirs.target_modules) == (4, 8.0, {"query"})
    assert (theirs.rank_pattern, theirs.use_rslora) == ({"value": 2}, True)


@pytest.mark.parametrize("kind", ["plain", "gaussian", "conv1d"])
def test_what_peft_writes_is_read(tmp_path, kind: str):
    extra = {"plain": {}, "gaussian": {"init_lora_weights": "gaussian"}, "conv1d": {"fan_in_fan_out": True}}[kind]
    peft.LoraConfig(r=3, target_modules=["query", "value"], task_type="SEQ_CLS", **extra).save_pretrained(str(tmp_path))
    body = json.loads((tmp_path / "adapter_config.json").read_text())
    config = LoraConfig.from_peft(body, "adapter_config.json")
    assert config.r == 3
    assert set(config.target_modules or ()) == {"query", "value"}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bias", "vera_only"),
        ("lora_bias", True),
        ("use_qalora", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["w"]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("a_setting_of_tomorrow", {"on": True}),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(setting: str, value: object):
    body = {"peft_type": "LORA", "r": 8, "target_modules": ["q"], setting: value}
    with pytest.raises(AdapterError, match=rf"the\.json.*{setting}"):
        LoraConfig.from_peft(body, "the.json")


def test_all_that_is_refused_is_named_at_once():
    with pytest.raises(AdapterError, match=r"lora_bias=True, use_qalora=True"):
        LoraConfig.from_peft({"peft_type": "LORA", "use_qalora": True, "lora_bias": True}, "x")


def test_another_method_is_refused():
    with pytest.raises(AdapterError, match="VERA"):
        LoraConfig.from_peft({"peft_type": "VERA"}, "x")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("r", 0),
        ("r", True),
        ("r", 2.5),
        ("r", 10**400),
        pytest.param("r", 10**5000, id="enormous"),
        ("r", "8"),
        ("lora_alpha", 0),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400),
        ("lora_alpha", "16"),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("lora_dropout", "0.1"),
        ("rank_pattern", {"q": 0}),
        ("rank_pattern", {"(": 1}),
        ("rank_pattern", [1]),
        ("alpha_pattern", {"q": -1}),
        ("alpha_pattern", {"q": None}),
        ("target_modules", "("),
        ("target_modules", (1,)),
        ("target_modules", {"q": 1}),
        ("exclude_modules", "*"),
        ("layers_to_transform", (-1,)),
        ("layers_to_transform", "1"),
        ("layers_pattern", "("),
        ("layers_pattern", (1,)),
        ("use_rslora", 1),
        ("modules_to_save", "classifier"),
    ],
)
def test_values_out_of_range_or_type_are_refused(setting: str, value: object):
    with pytest.raises(ConfigError, match=setting):
        LoraConfig(**{setting: value})  # type: ignore[arg-type]


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        LoraConfig(r=0, lora_alpha=-1, lora_dropout=2)
    assert all(word in str(caught.value) for word in ("r must", "lora_alpha", "lora_dropout"))


def test_layers_and_a_regular_expression_contradict_each_other_as_in_peft():
    with pytest.raises(ConfigError, match="layers_to_transform"):
        LoraConfig(target_modules=".*query", layers_to_transform=(1,))
    with pytest.raises(ValueError, match="layers_to_transform"):
        peft.LoraConfig(target_modules=".*query", layers_to_transform=[1])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*asdict(LoraConfig()), "bias", "use_dora", "init_lora_weights"]), json_values))
def test_any_json_is_read_or_refused(body: dict[str, object]):
    try:
        config = LoraConfig.from_peft({"peft_type": "LORA", **body}, "x")
    except AdapterError:
        return
    assert config.rank("a.b") >= 1
    assert config.scale("a.b") > 0
