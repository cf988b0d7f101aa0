"""What is generated: transformers' own tokens, whatever shares the batch, and named errors before any work."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgelora.errors import BundleError, ConfigError, DataError, EdgeLoraError, StoreError
from edgelora.language import cache
from edgelora.language.cache import Cache, bytes_per_token
from edgelora.language.chat import ChatTemplate
from edgelora.language.conversation import Chat
from edgelora.language.generation import rows_within
from edgelora.language.packing import RowInputs
from edgelora.language.sampling import GenerationConfig, Sampler
from edgelora.mixing import AdapterStack
from edgelora.runtime import Model
from tests.language_models import (
    LONGEST,
    VOCABULARY,
    byte_tokenizer,
    stories_archive,
    stories_folder,
    to_language_bundle,
)

PROMPTS = ["Once upon a time", "What", "the quick brown fox — 東京", "\n\n"]
LONG = GenerationConfig(max_new_tokens=24)
DRAWN = GenerationConfig(max_new_tokens=16, do_sample=True, temperature=0.8, top_k=40, top_p=0.95, seed=5)


TOKENIZER = byte_tokenizer()


def ids_of(prompt: str) -> list[int]:
    return TOKENIZER.encode(prompt)


def transformers_tokens(causal: Any, prompt: list[int], config: GenerationConfig) -> list[int]:
    """What transformers says greedily, without its end token."""
    ids = torch.tensor([prompt])
    out = causal.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        repetition_penalty=config.repetition_penalty,
        pad_token_id=0,
    )
    tokens = out[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens[-1] == causal.config.eos_token_id else tokens


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_rows_of_different_lengths_say_what_transformers_says(model, causal, penalty):
    config = replace(LONG, repetition_penalty=penalty)
    made = model.generate(PROMPTS, config=config)
    assert len({one.tokens for one in made}) == len(PROMPTS)
    for prompt, one in zip(PROMPTS, made, strict=True):
        ids = ids_of(prompt)
        assert list(one.tokens) == transformers_tokens(causal, ids, config)
        assert one.prompt_tokens == len(ids)
        whole = TOKENIZER.decode([*ids, *one.tokens])
        assert whole.startswith(prompt) and prompt + one.text == whole


def test_the_end_token_ends_a_row_and_the_others_go_on(model, causal):
    """A token that one of the rows says is made the end token."""
    said = [list(one.tokens) for one in model.generate(PROMPTS, config=LONG)]
    end = next(token for token in said[0][4:] if sum(token in row for row in said) < len(said))
    model.bundle.manifest = replace(
        model.bundle.manifest, language=replace(model.bundle.manifest.language, eos=(end, 263))
    )
    ended = model.generate(PROMPTS, config=LONG)
    for row, one in zip(said, ended, strict=True):
        assert list(one.tokens) == (row[: row.index(end)] if end in row else row)
        assert one.finish_reason == ("end" if end in row else "length")
    assert {one.finish_reason for one in ended} == {"end", "length"}


def test_an_adapter_says_what_transformers_says_with_merged_weights(model, causal, drawn):
    adapter = drawn(1)
    merged = copy.deepcopy(causal)
    modules = dict(merged.named_modules())
    with torch.no_grad():
        for point in model.bundle.manifest.points:
            a, b = (adapter.tensors[f"{point.id}.lora_{part}"] for part in "AB")
            modules[point.id].weight += torch.from_numpy((a @ b).T) * 2
    made = model.generate(PROMPTS, adapter, config=LONG)
    assert made != model.generate(PROMPTS, config=LONG)
    for prompt, one in zip(PROMPTS, made, strict=True):
        assert list(one.tokens) == transformers_tokens(merged, ids_of(prompt), LONG)


@pytest.mark.parametrize("config", [LONG, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("stack", ["side by side", "one at a time"])
def test_every_row_says_what_it_says_alone(model, drawn, config, stack):
    """Adapters of several ranks in one batch, by the graph for mixed batches or a run for each."""
    model.store.save("anna", drawn(1))
    model.store.save("ben", drawn(2, rank=2))
    adapters = ["anna", None, drawn(3), "ben", None, "anna"]
    prompts = [*PROMPTS, *PROMPTS[:2]]
    if stack == "one at a time":
        model.stack = AdapterStack(model.bundle.manifest, 1)
    together = model.generate(prompts, adapters=adapters, config=config)
    alone = [model.generate([p], a, config=config)[0] for p, a in zip(prompts, adapters, strict=True)]
    assert together == alone
    assert len({one.tokens for one in together}) == len(prompts)
    assert (model.stack.copied > 0) == (stack == "side by side")


def test_tokens_are_drawn_from_the_logits_of_the_whole_text(model, causal):
    """Transformers reads the whole text each time, and the same sampler chooses."""
    config = replace(DRAWN, max_new_tokens=8)
    for prompt, one in zip(PROMPTS[:2], model.generate(PROMPTS[:2], config=config), strict=True):
        ids = ids_of(prompt)
        sampler = Sampler(config, np.array(ids), VOCABULARY)
        for token in one.tokens:
            with torch.no_grad():
                logits = causal(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
            assert sampler.choose(logits) == token
            ids.append(token)


def test_drawn_texts_differ_by_seed_and_without_one(model):
    prompts = ["Once"] * 3
    same = model.generate(prompts, config=DRAWN)
    assert len({one.tokens for one in same}) == 1
    assert model.generate(["Once"], config=replace(DRAWN, seed=6))[0] != same[0]
    assert len({one.tokens for one in model.generate(prompts, config=replace(DRAWN, seed=None))}) == 3


def test_a_long_prompt_is_read_in_parts(model, monkeypatch):
    whole = model.generate(PROMPTS, config=LONG)
    monkeypatch.setattr(cache, "MOST_AT_ONCE", 3)
    assert model.generate(PROMPTS, config=LONG) == whole


def test_rows_wait_where_the_memory_is_small(model):
    language = model.bundle.manifest.language
    longest = max(len(ids_of(prompt)) for prompt in PROMPTS) + LONG.max_new_tokens
    memory = 2 * longest * bytes_per_token(language)
    assert rows_within(memory, language, longest) == 2
    assert model.generate(PROMPTS, config=LONG, cache_memory=memory) == model.generate(PROMPTS, config=LONG)
    with pytest.raises(ConfigError, match=r"cache_memory .* allow more"):
        model.generate(PROMPTS, config=LONG, cache_memory=memory // 4)


def test_the_memory_that_is_told_is_what_the_values_take(model):
    language = model.bundle.manifest.language
    one = Cache(model.bundle.graph(language.decode), model.base.feeds, 3)
    one.read(np.ones((3, 7), np.int64))
    held = sum(value.numpy().nbytes for value in one._past.values())
    assert 2 * held == 3 * 7 * bytes_per_token(language)


def test_a_text_ends_before_a_stop_string(model):
    whole = model.generate(PROMPTS[:1], config=LONG)[0].text
    stop = whole[len(whole) // 3 : len(whole) // 3 + 3]
    (one,) = model.generate(PROMPTS[:1], config=replace(LONG, stop_strings=[stop, "not there"]))
    assert one.text == whole[: whole.index(stop)]
    assert one.finish_reason == "stop_string"
    assert len(one.tokens) < LONG.max_new_tokens


def test_pieces_together_are_the_texts(model, drawn):
    adapters = [None, drawn(1), drawn(2), None]
    pieces = list(model.stream(PROMPTS, adapters=adapters, config=LONG))
    made = model.generate(PROMPTS, adapters=adapters, config=LONG)
    for row, one in enumerate(made):
        own = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in own) == one.text
        assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + [one.finish_reason]


def test_a_conversation_is_written_by_its_template(model):
    written = "<|system|>Be brief.\n<|user|>What?\n<|assistant|>"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    assert model.generate([messages], config=LONG) == model.generate([written], config=LONG)


def test_jinja_is_needed_for_conversations_alone(model, monkeypatch):
    wanted = model.generate(PROMPTS[:1], config=LONG)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    fresh = Model.open(model.bundle.path, model.store.root)
    assert fresh.generate(PROMPTS[:1], config=LONG) == wanted
    with pytest.raises(EdgeLoraError, match=r"chat templates need Jinja2: pip install"):
        Chat(fresh)


def test_an_empty_text_begins_with_the_models_own_token(model):
    language = model.bundle.manifest.language
    assert model.generate([""], config=LONG) == model.generate(["<s>"], config=LONG)
    model.bundle.manifest = replace(model.bundle.manifest, language=replace(language, bos=None))
    with pytest.raises(DataError, match="prompt 2 is empty"):
        Model(model.bundle, model.store).generate(["a", ""], config=LONG)


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ("a text", "put the one in a list"),
        (None, "put the one in a list; None is none"),
        (7, "put the one in a list; 7 is none"),
        ([{"role": "user", "content": "x"}], "prompt 1"),
        ([["x"]], "prompt 1: a message has a role and a content"),
        ([[{"role": "user"}]], "role and a content"),
        ([[]], "prompt 1 must be a text, or a list of messages"),
        ([3], "prompt 1 must be a text"),
        (["a", "\ud800"], "prompt 2: .*not valid Unicode"),
        (["a", [{"role": "user", "content": "\ufdd1"}], "\ud800"], r"prompt 2: .*noncharacters(.|\n)*prompt 3: "),
        (["a", "b " * LONGEST], rf"prompt 2 has .* more than the model's {LONGEST}"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(model, prompts, named):
    with pytest.raises(DataError, match=named):
        model.stream(prompts, config=LONG)


def test_a_conversation_of_which_the_template_writes_nothing_is_named(model):
    model.encoder.template = ChatTemplate("{{ messages[0].nothing }}", {})
    with pytest.raises(DataError, match="prompt 1: the chat template writes nothing"):
        model.generate([[{"role": "user", "content": "x"}]], config=LONG)
    with pytest.raises(DataError, match="the chat template writes nothing"):
        Chat(model, config=LONG)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_tokens_that_the_model_does_not_have_are_named(model, token):
    ids = np.array([[3, token]])
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.array([[0, 1]])}
    with pytest.raises(DataError, match=f"input_ids .*{token}.* {VOCABULARY}"):
        model.outputs(given)


def test_one_run_reads_rows_of_like_length_and_no_more_positions_than_are_to_be(model, monkeypatch):
    """Whatever the first row is: logits of all tokens of all rows would be much."""
    texts = ["a", *("b" * 150, "c" * 9) * 12, "d" * 150]
    read, feeds = [], RowInputs.feeds

    def noted(self, rows):
        read.append(feeds(self, rows))
        return read[-1]

    monkeypatch.setattr(RowInputs, "feeds", noted)
    together = model.outputs(texts)["logits"]
    runs = [given["input_ids"].shape for given in read[1:]]
    assert sum(rows for rows, _ in runs) == len(texts)
    assert all(rows * width <= 512 for rows, width in runs) and len(runs) == 6
    assert np.isfinite(together).all()
    for row in (0, 1, 2, 25):
        alone = model.outputs(texts[row : row + 1])["logits"][0]
        np.testing.assert_allclose(together[row, : len(alone)], alone, rtol=0, atol=1e-5)


def test_the_context_is_used_to_its_last_token(model):
    prompt = "x" * (LONGEST - 24)
    room = LONGEST - len(ids_of(prompt))
    config = GenerationConfig(max_new_tokens=room)
    assert len(model.generate([prompt], config=config)[0].tokens) == room
    with pytest.raises(DataError, match="shorten it, or ask for fewer"):
        model.generate([prompt], config=GenerationConfig(max_new_tokens=room + 1))


def test_adapters_that_are_not_there_are_named(model, drawn):
    model.store.save("anna", drawn(1))
    with pytest.raises(StoreError, match="no adapter 'ben'"):
        model.stream(PROMPTS[:2], adapters=["anna", "ben"], config=LONG)
    with pytest.raises(ConfigError, match="1 adapters for 2 prompts"):
        model.stream(PROMPTS[:2], adapters=["anna"], config=LONG)


def test_a_graph_without_a_cache_does_not_generate(model):
    language = replace(model.bundle.manifest.language, decode=model.bundle.manifest.forward)
    model.bundle.manifest = replace(model.bundle.manifest, language=language)
    with pytest.raises(BundleError, match="keeps no keys and values"):
        model.generate(["a"], config=LONG)


def test_a_bundle_of_another_task_writes_no_text(model):
    model.bundle.manifest = replace(model.bundle.manifest, language=None, task="feature-extraction")
    with pytest.raises(ConfigError, match="--task text-generation"):
        model.generate(["a"])


def test_stories_go_on_as_transformers_tells_them(tmp_path):
    """A real model, whose tokens fall back to bytes."""
    archive = stories_archive()
    if archive is None:
        pytest.skip("stories260k.zip is not there: EDGELORA_DATA names its folder")
    folder = stories_folder(archive, tmp_path / "stories")
    causal = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = Model.open(to_language_bundle(folder, tmp_path / "stories.edgelora"))
    config = GenerationConfig(max_new_tokens=40)
    prompts = ["Once upon a time", "Lily said “é”", ""]
    for prompt, one in zip(prompts, model.generate(prompts, config=config), strict=True):
        ids = tokenizer.encode(prompt)
        assert list(one.tokens) == transformers_tokens(causal, ids, config)
        assert tokenizer.decode([*ids, *one.tokens], skip_special_tokens=True) == prompt + one.text
