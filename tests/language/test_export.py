"""Decoders of transformers as bundles: whole, packed, padded and token by token they give what torch gives."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgelora import Model, TrainingConfig, train
from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.errors import ConfigError, ConversionError
from edgelora.language.samples import Passage
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.runner import open_session
from edgelora_tools.sources import Source, fixed, open_source
from edgelora_tools.sources.cached_module import CachedModule, empty_past, tokens_of
from edgelora_tools.sources.causal_lm import decoder_source, hold_to_model, load_causal_lm
from edgelora_tools.sources.rotations import settle_rotations
from tests.language.gguf_files import gguf_file
from tests.language_models import (
    BOS,
    CONFIGS,
    EOS,
    LONGEST,
    SMALL,
    TEMPLATE,
    VOCABULARY,
    build,
    byte_tokenizer,
    hf,
    stories_archive,
    stories_folder,
)

CLOSE = 2e-6
TASK = "text-generation"


def words(seed: int, *lengths: int) -> list[list[int]]:
    """Token ids of samples of these lengths."""
    rng = np.random.default_rng(seed)
    return [[int(x) for x in rng.integers(3, VOCABULARY, length)] for length in lengths]


def alone(causal: Any, ids: list[int]) -> np.ndarray:
    """The model's own logits `[length, vocabulary]` of one sample, without cache, mask or positions of ours."""
    with torch.no_grad():
        return causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def gap(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def arrays(rows: list[list[int]], segments: list[list[int]]) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in tokens_of(rows, segments).items()}


def held_to_torch(causal: Any, forward: Any) -> None:
    """Rows packed, padded left and right, and of one token, in one batch."""
    a, b, c = words(0, 9, 6, 1)
    rows = [[*a, *b, 0], [0] * 5 + b + [0] * 5, [*a, *[0] * 7], [0, *c, *a, *[0] * 5]]
    segments = [[1] * 9 + [2] * 6 + [0], [0] * 5 + [1] * 6 + [0] * 5, [1] * 9 + [0] * 7, [0, 1, *[2] * 9, *[0] * 5]]
    made = forward(arrays(rows, segments))
    for row, start, ids in ((0, 0, a), (0, 9, b), (1, 5, b), (2, 0, a), (3, 1, c), (3, 2, a)):
        assert gap(made[row, start : start + len(ids)], alone(causal, ids)) < CLOSE, (row, start)


def decoded_to_torch(causal: Any, decode: Any, layers: int, heads: int, size: int, one_token: bool) -> None:
    """Two prompts of other lengths, one padded on the left, and six tokens more."""
    whole = words(1, 15, 12)
    wanted = [alone(causal, ids) for ids in whole]
    prompts = [whole[0][:9], whole[1][:6]]
    tokens = arrays([prompts[0], [0] * 3 + prompts[1]], [[1] * 9, [0] * 3 + [1] * 6])
    names = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
    past = {f"past_key_values.{name}": np.zeros((2, heads, 0, size), np.float32) for name in names}
    last = np.array([8, 8])
    for step in range(7):
        made = decode({**tokens, **past, **({"last": last} if one_token else {})})
        logits = made["logits"] if one_token else made["logits"][:, -1]
        for row, at in ((0, 8 + step), (1, 5 + step)):
            assert gap(logits[row], wanted[row][at]) < CLOSE, (row, step)
        past = {f"past_key_values.{name}": made[f"present.{name}"] for name in names}
        following = [[whole[0][9 + step]], [whole[1][6 + step]]] if step < 6 else [[0], [0]]
        mask = np.concatenate([tokens["attention_mask"], np.ones((2, 1), np.int64)], 1)
        places = np.array([[9 + step], [6 + step]])
        tokens = {"input_ids": np.array(following), "attention_mask": mask, "position_ids": places}
        last = np.array([0, 0])


def test_a_llama_gives_what_torch_gives(language_bundle: Path) -> None:
    bundle, causal = Bundle.open(language_bundle), build("llama")
    off = absent_adapter(bundle.manifest)
    held_to_torch(causal, lambda feeds: bundle.forward.run({**feeds, **off})["logits"])
    graph = bundle.graph("decode.onnx")
    decoded_to_torch(causal, lambda feeds: graph.run({**feeds, **off}), 2, 2, 8, True)


def test_its_bundle_is_checked(language_bundle: Path) -> None:
    verdict = check(Bundle.open(language_bundle))
    assert verdict.passed, verdict
    assert {"decode.onnx", "decode-mixed.onnx", "score.onnx"} <= {one.file for one in verdict.graphs}


def test_the_manifest_tells_of_the_language(language_bundle: Path) -> None:
    manifest = Bundle.open(language_bundle).manifest
    language = manifest.language
    assert language is not None and manifest.head is None
    assert (language.layers, language.kv_heads, language.head_size) == (2, 2, 8)
    assert (language.vocabulary, language.max_length) == (VOCABULARY, LONGEST)
    assert (language.bos, language.eos) == (BOS, (EOS,))
    assert language.chat_template is not None
    assert (language_bundle / language.chat_template).read_text() == TEMPLATE
    assert [p.id for p in manifest.points][:2] == [f"model.layers.0.self_attn.{x}_proj" for x in "qv"]
    assert [spec.name for spec in manifest.inputs] == ["input_ids", "attention_mask", "position_ids"]


def test_tied_embeddings_are_one_tensor_in_the_file(language_bundle: Path) -> None:
    causal = build("llama")
    once = sum(p.numel() * 4 for p in causal.parameters())
    written = (language_bundle / "weights.bin").stat().st_size
    pages = 4096 * (2 + sum(1 for p in causal.parameters() if p.ndim > 1))
    assert once - 4096 < written < once + pages
    table = causal.lm_head.weight.numel() * 4
    for file in language_bundle.glob("*.onnx"):
        if file.name != "values.onnx":
            graph = onnx.load(file, load_external_data=False).graph
            assert sum(list(x.dims) == [VOCABULARY, 32] for x in graph.initializer) == 1, file.name
            assert not any(list(x.dims) == [32, VOCABULARY] for x in graph.initializer), file.name
    assert table > 4096


def test_shared_heads_are_not_repeated(language_bundle: Path) -> None:
    for file in ("decode.onnx", "decode-mixed.onnx"):
        graph = onnx.load(language_bundle / file, load_external_data=False).graph
        assert not [node.name for node in graph.node if node.op_type == "Expand"], file
        past = [x.name for x in graph.input if x.name.startswith("past_key_values")]
        assert {node.op_type for node in graph.node if set(past) & set(node.input)} == {"Concat"}, file


def test_the_cache_is_read_by_nothing_but_what_appends_to_it(language_source: Source) -> None:
    source = language_source
    assert source.decoder is not None
    past = [x for x in source.decoder.cached.graph.inputs if str(x.name).startswith("past_key_values")]
    assert len(past) == 4
    assert [[node.op_type for node, _ in x.uses()] for x in past] == [["Concat"]] * 4
    assert [str(y.name) for y in source.model.graph.outputs] == ["logits"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_type_goes_by_our_masks_and_cache(kind: str) -> None:
    """What is exported is this module: a type whose export is not tried below is tried as far as torch runs it."""
    causal = build(kind)
    past = empty_past(causal)
    module = CachedModule(causal).eval()
    hold_to_model(module, past, kind)

    def forward(feeds: dict[str, np.ndarray]) -> np.ndarray:
        given = [torch.from_numpy(feeds[name]) for name in ("input_ids", "attention_mask", "position_ids")]
        with torch.no_grad():
            return module(*given, [x.expand(len(given[0]), -1, -1, -1) for x in past])[0].numpy()

    held_to_torch(causal, forward)


@pytest.mark.parametrize("kind", ["gemma3"])
def test_other_types_give_what_torch_gives(kind: str) -> None:
    """Layers that see a window beside layers that see all, as graphs."""
    causal = build(kind)
    source = decoder_source(causal, kind, {}, {}, [EOS])
    decoder = source.decoder
    assert decoder is not None
    with open_session(source.model) as session:
        held_to_torch(causal, lambda feeds: session.run(["logits"], feeds)[0])
    with open_session(decoder.cached) as session:
        names = [y.name for y in session.get_outputs()]
        sizes = decoder.layers, decoder.kv_heads, decoder.head_size
        decoded_to_torch(causal, lambda feeds: dict(zip(names, session.run(names, feeds), strict=True)), *sizes, False)


@pytest.mark.skipif(stories_archive() is None, reason="stories260k.zip is not there: EDGELORA_DATA names its folder")
def test_real_weights_tell_a_story(tmp_path: Path) -> None:
    archive = stories_archive()
    assert archive is not None
    folder = stories_folder(archive, tmp_path / "stories")
    causal = hf.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    told = tokenizer.decode(causal.generate(ids, do_sample=False, max_new_tokens=30)[0], skip_special_tokens=True)
    assert told.startswith("Once upon a time, there was a little girl named Lily.")


def altered(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of a model directory with another config.json."""
    shutil.copytree(folder, to)
    body = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(body | config))
    return to


def test_what_continues_no_text_is_refused(tmp_path: Path, language_folder: Path) -> None:
    with pytest.raises(ConversionError, match=r"neither config\.json nor one GGUF file"):
        open_source(str(tmp_path), task=TASK)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    bert = hf.BertForMaskedLM(hf.BertConfig(**small, vocab_size=VOCABULARY))
    bert.save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ConversionError, match="a bert"):
        open_source(str(tmp_path / "bert"), task=TASK)
    vit = hf.ViTModel(hf.ViTConfig(**small, image_size=16, patch_size=4))
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(ConversionError, match="a vit does not continue text"):
        open_source(str(tmp_path / "vit"), task=TASK)
    with pytest.raises(ConversionError, match="converts Hugging Face directories and GGUF files"):
        open_source(str(language_folder / "config.json"), task=TASK)
    with pytest.raises(ConversionError, match="no such file"):
        open_source("model.onnx", task=TASK)
    with pytest.raises(ConversionError, match="leave --exporter torchscript out"):
        open_source(str(language_folder), "torchscript", task=TASK)
    odd = altered(language_folder, tmp_path / "odd", model_type="unheard-of")
    with pytest.raises(ConversionError, match="cannot load its configuration"):
        open_source(str(odd), task=TASK)


def test_what_is_wrong_with_the_words_is_said(tmp_path: Path, language_folder: Path) -> None:
    bare = altered(language_folder, tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    with pytest.raises(ConversionError, match="no tokenizer"):
        open_source(str(bare), task=TASK)
    broken = altered(language_folder, tmp_path / "broken")
    (broken / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }")
    with pytest.raises(ConversionError, match="its chat template is broken"):
        open_source(str(broken), task=TASK)
    narrow = altered(language_folder, tmp_path / "narrow", vocab_size=200)
    with pytest.raises(ConversionError, match="ids up to 258, the model 200 tokens"):
        open_source(str(narrow), task=TASK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"placement": "skip"}, "leave placement out"),
        ({"pooling": "cls"}, "leave pooling cls out"),
        ({"max_length": LONGEST + 1}, "the model takes 192 tokens"),
        ({"max_length": 0}, "at least one token"),
        ({"target_modules": ()}, "target_modules names none"),
        ({"task": "feature-extraction"}, "open it for feature-extraction"),
    ],
    ids=str,
)
def test_options_without_a_sense_are_refused(options: Any, said: str, language_source: Source, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=said):
        convert(language_source, tmp_path / "x.edgelora", ConvertOptions(**{"task": TASK, **options}))


def test_no_size_is_fixed(language_source: Source, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="fix none"):
        convert(fixed(language_source, {"batch": 1}), tmp_path / "x.edgelora", ConvertOptions(task=TASK))
    other = replace(language_source, decoder=None)
    with pytest.raises(ConversionError, match="open it for text-generation"):
        convert(other, tmp_path / "x.edgelora", ConvertOptions(task=TASK))


def test_a_bundle_may_take_shorter_texts_than_its_model(language_source: Source, tmp_path: Path) -> None:
    options = ConvertOptions(task=TASK, max_length=24, target_modules=("q_proj",), unpad=False)
    language = convert(language_source, tmp_path / "short.edgelora", options).language
    assert language is not None and language.max_length == 24
    model = Model.open(tmp_path / "short.edgelora")
    with pytest.raises(ConfigError, match="more than this model takes, 24 tokens"):
        train(model, "ann", [Passage("some words", 0, True)], config=TrainingConfig(max_length=32))


@pytest.mark.parametrize("body", ["{}", '{"model": null}', '{"model": {"vocab": {"a": "x"}}}'])
def test_what_is_no_tokenizer_is_refused(body: str, tmp_path: Path, language_folder: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(body)
    with pytest.raises(ConversionError, match=r"not a tokenizer\.json"):
        load_causal_lm(language_folder, tmp_path / "tokenizer.json")


def test_a_template_beside_the_model_stays_with_another_tokenizer(language_folder: Path) -> None:
    files = load_causal_lm(language_folder, language_folder / "tokenizer.json")[2]
    assert files["chat_template.jinja"].decode() == TEMPLATE


def test_a_text_ends_where_generation_is_configured_to_end(tmp_path: Path, language_folder: Path) -> None:
    """Chat models name the token that ends a turn there; tokens that the model does not have end nothing."""
    folder = altered(language_folder, tmp_path / "chat", bos_token_id=50256, eos_token_id=[EOS, 50256])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 7]}))
    decoder = decoder_source(*load_causal_lm(folder)).decoder
    assert decoder is not None
    assert (decoder.bos, decoder.eos) == (None, (EOS, 7))


def test_a_gguf_file_is_the_model_that_it_was_made_from(tmp_path: Path) -> None:
    causal = build("llama")
    path = gguf_file(causal, tmp_path / "tiny.gguf")
    for given in (path, tmp_path):
        loaded, name, files, facts, eos = load_causal_lm(given)
        (ids,) = words(0, 9)
        assert gap(alone(loaded, ids), alone(causal, ids)) < CLOSE
        assert (name, eos) == (given.stem, [EOS])
        assert files["chat_template.jinja"].decode() == TEMPLATE
    assert facts["pad_id"] >= 0
    shutil.copy(path, tmp_path / "second.gguf")
    with pytest.raises(ConversionError, match=r"several GGUF files, second\.gguf, tiny\.gguf: name the one to convert"):
        load_causal_lm(tmp_path)


def test_a_gguf_file_says_its_task(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConversionError, match="--task text-generation"):
        open_source(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("rotations", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, LONGEST),
        (
            {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.5], "factor": 3.0,
             "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 64},
            64,
        ),
    ],
    ids=["dynamic", "longrope"],
)  # fmt: skip
def test_rotations_that_change_with_the_length_are_those_of_the_original_length(rotations: Any, limit: int):
    """A row that is longer than that does not turn another's tokens, as it does in transformers."""
    config = hf.LlamaConfig(**(SMALL | {"num_key_value_heads": 2}), rope_parameters=rotations)
    causal = hf.LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    (text,), (longer,) = words(0, limit - 2), words(1, LONGEST + 8)
    wanted = alone(causal, text)
    assert settle_rotations(causal) == limit
    rows = [text + [0] * (len(longer) - len(text)), longer]
    given = tokens_of(rows, [[1] * len(text) + [0] * (len(longer) - len(text)), [1] * len(longer)])
    with torch.no_grad():
        past = [x.expand(2, -1, -1, -1) for x in empty_past(causal)]
        got = CachedModule(causal)(*given.values(), past)[0][0]
    assert gap(got[: len(text)].numpy(), wanted) < CLOSE
