"""Adapters of other methods than LoRA write what PEFT writes, alone and beside others, and their losses are PEFT's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from edgelora.adapter import Adapter, new_adapter, read_adapter
from edgelora.check import check
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError, ConversionError, DataError
from edgelora.language.conversation import Chat
from edgelora.language.samples import Passage
from edgelora.language.sampling import GenerationConfig
from edgelora.measuring import evaluate
from edgelora.methods import PrefixTuningConfig, PromptTuningConfig
from edgelora.objectives import Judge
from edgelora.runtime import Model
from edgelora.tasks import objective_for
from edgelora.training import train
from edgelora.training_config import TrainingConfig
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.causal_lm import decoder_source
from tests.language.test_generation import PROMPTS, ids_of
from tests.language_models import EOS, build, byte_tokenizer
from tests.methods.twins import moved

LONGEST, VIRTUAL = 120, 4
METHODS = {"llama": ("ia3", "dora", "prompt", "prefix"), "gpt2": ("prompt", "prefix")}
CASES = [(kind, method) for kind, methods in METHODS.items() for method in methods]
LOUDNESS = {"ia3": 2.0, "dora": 0.3, "prompt": 0.2, "prefix": 0.2}
CONFIG = GenerationConfig(max_new_tokens=8)
TEXTS = PROMPTS[:3]
Made = Callable[[str], tuple[Path, dict[str, Path]]]
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


def settings(kind: str, method: str) -> Any:
    """PEFT's settings of the method."""
    targets = {"target_modules": TARGETS[kind], "task_type": "CAUSAL_LM"}
    if method == "ia3":
        return peft.IA3Config(**targets, feedforward_modules=[])
    if method == "dora":
        return peft.LoraConfig(**targets, r=4, use_dora=True, fan_in_fan_out=kind == "gpt2")
    of = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}[method]
    return of(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)


@pytest.fixture(scope="module")
def made(
    language_source: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str, Path]]]:
    """made(kind): the bundle with graphs for all methods, and a folder of PEFT's for each."""

    @functools.cache
    def of(kind: str) -> tuple[Path, dict[str, Path]]:
        folder, source = tmp_path_factory.mktemp(kind), language_source
        if kind == "gpt2":
            byte_tokenizer().save_pretrained(folder)
            files = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
            source = decoder_source(build(kind), kind, files, {}, [EOS])
        options = ConvertOptions(task="text-generation", methods=METHODS[kind], max_length=LONGEST)
        convert(source, folder / "b.edgelora", options)
        for method in METHODS[kind]:
            adapter = moved(peft.get_peft_model(build(kind), settings(kind, method)), loudness=LOUDNESS[method])
            adapter.save_pretrained(str(folder / method))
        return folder / "b.edgelora", {method: folder / method for method in METHODS[kind]}

    return of


@pytest.fixture
def opened(made: Any, tmp_path: Path) -> Callable[[str], tuple[Model, dict[str, Path]]]:
    """opened(kind): the bundle with an empty store, and the folders."""

    def of(kind: str) -> tuple[Model, dict[str, Path]]:
        bundle, folders = made(kind)
        return Model.open(bundle, tmp_path / "store"), folders

    return of


def own(model: Model, folder: Path) -> Adapter:
    return read_adapter(folder, model.bundle.manifest, accept_base=True, base=model.bundle)


def theirs(kind: str, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(build(kind), str(folder)).eval()


def peft_tokens(model: Any, prompt: str) -> list[int]:
    ids = torch.tensor([ids_of(prompt)])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=CONFIG.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    tokens = made[0, ids.shape[1] :].tolist()
    return tokens[:-1] if tokens[-1] == EOS else tokens


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_rows_say_and_cost_what_pefts_do(opened, kind, method):
    model, folders = opened(kind)
    adapter, other = own(model, folders[method]), theirs(kind, folders[method])
    made = model.generate(TEXTS, adapter, config=CONFIG)
    assert [list(row.tokens) for row in made] == [peft_tokens(other, prompt) for prompt in TEXTS]
    assert made != model.generate(TEXTS, config=CONFIG)
    samples = [Passage(text) for text in TEXTS]
    objective = objective_for(model, samples, None, TrainingConfig())
    assert objective.judge(model.bundle.manifest, method) == Judge(f"score-{method}.onnx", ("nll",))
    nats = tokens = 0.0
    for text in TEXTS:
        ids = torch.tensor([[*ids_of(text), EOS]])
        with torch.no_grad():
            logits = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] : -1]
        nats += float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    assert evaluate(model.bundle, adapter, objective)["loss"] == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.parametrize("kind", METHODS)
def test_rows_of_all_methods_say_what_each_says_alone(opened, kind):
    """And GPT-2, whose products see batch and positions as one axis, has rows with adapters of their own."""
    model, folders = opened(kind)
    assert model.bundle.manifest.language.decode_mixed is not None
    for method, folder in folders.items():
        model.store.save(method, own(model, folder))
    for seed, name in enumerate(("ann", "ben")):
        fresh, rng = new_adapter(model.bundle.manifest, LoraConfig(r=2)), np.random.default_rng(seed)
        values = {n: (rng.standard_normal(t.shape) * 0.3).astype(np.float32) for n, t in fresh.tensors.items()}
        model.store.save(name, fresh.with_tensors(values))
    adapters = [None, "ann", *folders, "ben", *folders]
    prompts = [TEXTS[i % 3] for i in range(len(adapters))]
    together = model.generate(prompts, adapters=adapters, config=CONFIG)
    alone = [model.generate([p], a, config=CONFIG)[0] for p, a in zip(prompts, adapters, strict=True)]
    assert together == alone
    assert model.stack.copied == 2


def test_the_graphs_of_gpt2_pass_their_check(opened):
    model, _ = opened("gpt2")
    verdict = check(model.bundle)
    assert verdict.passed
    files = {graph.file for graph in verdict.graphs}
    assert {"before-prompt.onnx", "before-prefix.onnx", "score-prompt.onnx", "score-prefix.onnx"} <= files


def test_a_conversation_keeps_the_tokens_before_it(opened):
    model, folders = opened("llama")
    chat = Chat(model, own(model, folders["prompt"]), config=CONFIG)
    first, second = chat.ask("Hello"), chat.ask("And?")
    whole = [*chat.messages[:-1]]
    assert model.generate([whole], chat.adapter, config=CONFIG)[0].text == second.text
    assert model.generate([whole[:1]], chat.adapter, config=CONFIG)[0].text == first.text
    assert chat.read < second.prompt_tokens
    chat.use(own(model, folders["prefix"]))
    third = chat.ask("Well")
    assert chat.read == third.prompt_tokens
    assert model.generate([chat.messages[:-1]], chat.adapter, config=CONFIG)[0].text == third.text


@pytest.mark.parametrize("config", [PromptTuningConfig(num_virtual_tokens=3), PrefixTuningConfig(num_virtual_tokens=3)])
def test_virtual_tokens_learn(opened, config):
    model, _ = opened("llama")
    samples = [Passage(text * 2) for text in PROMPTS[:3]]
    settings = TrainingConfig(num_train_epochs=6, batch_size=2, learning_rate=0.1)
    report = train(model, "ann", samples, samples, config, settings)
    losses = [epoch["eval_loss"] for epoch in report.history]
    assert losses[-1] < losses[0] - 0.05
    packed = replace(settings, packing=True, num_train_epochs=1)
    if config.peft_type == "PROMPT_TUNING":
        with pytest.raises(ConfigError, match=r"prompt adapters train on rows of one sample.*leave packing out"):
            train(model, "ben", samples, None, config, packed)
    else:
        train(model, "ben", samples, None, config, packed)
        objective = objective_for(model, samples, None, packed)
        apart = objective_for(model, samples, None, settings)
        adapter = model.store.load("ben")
        assert len(objective) < len(apart)
        together, alone = (evaluate(model.bundle, adapter, one)["loss"] for one in (objective, apart))
        assert together == pytest.approx(alone, rel=1e-5)


def test_what_has_no_graph_or_no_room_is_named(opened):
    model, folders = opened("llama")
    adapter = own(model, folders["prompt"])
    room = LONGEST - VIRTUAL - CONFIG.max_new_tokens
    model.generate(["x" * room], adapter, config=CONFIG)
    with pytest.raises(DataError, match=f"has {room + 1} tokens behind {VIRTUAL} of the adapter's"):
        model.generate(["x" * (room + 1)], adapter, config=CONFIG)
    sets = {name: replace(one, decode=None, before=None) for name, one in model.bundle.manifest.methods.items()}
    model.bundle.manifest = replace(model.bundle.manifest, methods=sets)
    for method, folder in folders.items():
        with pytest.raises(ConfigError, match=f"{method} adapters do not generate here.*--methods {method}"):
            model.generate(["x"], own(model, folder), config=CONFIG)


def test_more_virtual_tokens_than_a_table_has_positions_for_are_refused(opened):
    """GPT-2's table has 192 positions, and the bundle takes texts of 120."""
    model, _ = opened("gpt2")
    new_adapter(model.bundle.manifest, PromptTuningConfig(num_virtual_tokens=72))
    with pytest.raises(ConfigError, match=r"73 virtual tokens and 120 of a text .* 192 positions"):
        new_adapter(model.bundle.manifest, PrefixTuningConfig(num_virtual_tokens=73))


def test_prefixes_of_a_model_with_windows_are_refused(language_source, tmp_path):
    source = replace(language_source, decoder=replace(language_source.decoder, window=4))
    with pytest.raises(ConversionError, match=r"layers see 4 tokens back.*leave prefix out of methods"):
        convert(source, tmp_path / "b", ConvertOptions(task="text-generation", methods=("prefix",)))
