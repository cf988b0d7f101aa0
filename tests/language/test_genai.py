"""What is exported for ONNX Runtime GenAI writes what `generate` writes: fed as GenAI feeds it, and by GenAI itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgelora.adapter import Adapter
from edgelora.bundle import Bundle
from edgelora.cli import main
from edgelora.errors import ConfigError
from edgelora.language.sampling import GenerationConfig
from edgelora.onnx_adapter import write_onnx_adapter
from edgelora.runtime import Model
from edgelora_tools.interop.genai import save_genai

NEW = 12
CONFIG = GenerationConfig(max_new_tokens=NEW)
PROMPTS = ["Once upon", "A cat is."]  # of one length: GenAI takes rows that are


@pytest.fixture
def adapter(drawn: Callable[..., Adapter]) -> Adapter:
    return drawn(3)


@pytest.fixture
def folders(model: Model, adapter: Adapter, tmp_path: Path) -> dict[str, Path]:
    """The base for any adapter, one person's, and the file of the same adapter."""
    model.store.save("ann", adapter)
    made = {name: tmp_path / name for name in ("base", "own")}
    save_genai(model.bundle, None, made["base"])
    store = ["--store", str(tmp_path / "store")]
    words = ["export", str(model.bundle.path), *store, "--adapter", "ann", "--to", "genai", "-o", str(made["own"])]
    assert main(words) == 0
    write_onnx_adapter(adapter, model.bundle.manifest, tmp_path / "ann.onnx_adapter")
    return made | {"file": tmp_path / "ann.onnx_adapter"}


def written(model: Model, adapter: Adapter | None) -> list[tuple[int, ...]]:
    """The tokens that `generate` writes; none of the model's end is among them."""
    made = model.generate(PROMPTS, adapter=adapter, config=CONFIG)
    assert all(len(one.tokens) == NEW for one in made)
    return [one.tokens for one in made]


def prompts(model: Model) -> np.ndarray:
    encoder: Any = model.encoder
    return np.stack([encoder.encode(prompt).ids for prompt in PROMPTS])


def fed_as_genai_does(folder: Path, tokens: np.ndarray, file: Path | None = None) -> list[tuple[int, ...]]:
    """The likeliest tokens, from ids, a mask, positions, the cache and an active adapter alone."""
    session: Any = ort.InferenceSession(folder / "model.onnx")
    options = ort.RunOptions()
    if file is not None:
        active = ort.LoraAdapter()
        active.Load(str(file))
        options.add_active_adapter(active)
    cache = {i.name: np.zeros((len(tokens), i.shape[1], 0, i.shape[3]), np.float32) for i in session.get_inputs()[3:]}
    names = ["logits", *(name.replace("past_key_values", "present") for name in cache)]
    past, made = 0, list[np.ndarray]()
    for _ in range(NEW):
        rows, width = tokens.shape
        given = {
            "input_ids": tokens,
            "attention_mask": np.ones((rows, past + width), np.int64),
            "position_ids": np.tile(np.arange(past, past + width), (rows, 1)),
        }
        logits, *kept = session.run(names, {**given, **cache}, options)
        assert logits.shape[:2] == (rows, 1)
        past, cache, tokens = past + width, dict(zip(cache, kept, strict=True)), logits[:, 0].argmax(-1)[:, None]
        made.append(tokens)
    return [tuple(row) for row in np.concatenate(made, 1).tolist()]


def test_the_base_takes_adapters_from_files(model: Model, adapter: Adapter, folders: dict[str, Path]) -> None:
    tokens, base, own = prompts(model), written(model, None), written(model, adapter)
    assert base != own
    assert fed_as_genai_does(folders["base"], tokens) == base
    assert fed_as_genai_does(folders["base"], tokens, folders["file"]) == own


def test_ones_own_needs_no_file(model: Model, adapter: Adapter, folders: dict[str, Path]) -> None:
    assert fed_as_genai_does(folders["own"], prompts(model)) == written(model, adapter)
    inputs = [value.name for value in ort.InferenceSession(folders["own"] / "model.onnx").get_inputs()]
    assert not any("lora" in name for name in inputs) and "last" not in inputs


def test_genai_writes_the_same(model: Model, adapter: Adapter, folders: dict[str, Path]) -> None:
    og: Any = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    tokens = prompts(model)

    def made(folder: Path, file: Path | None = None) -> list[tuple[int, ...]]:
        engine = og.Model(str(folder))
        settings = og.GeneratorParams(engine)
        settings.set_search_options(max_length=tokens.shape[1] + NEW, do_sample=False, batch_size=len(tokens))
        generator = og.Generator(engine, settings)
        if file is not None:
            adapters = og.Adapters(engine)
            adapters.load(str(file), "ann")
            generator.set_active_adapter(adapters, "ann")
        generator.append_tokens(tokens.astype(np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [tuple(generator.get_sequence(row)[tokens.shape[1] :].tolist()) for row in range(len(tokens))]

    assert made(folders["base"]) == written(model, None)
    assert made(folders["base"], folders["file"]) == made(folders["own"]) == written(model, adapter)


def test_what_writes_no_text_is_refused(model: Model, tmp_path: Path) -> None:
    manifest = replace(model.bundle.manifest, language=None, task="feature-extraction")
    other = Bundle(model.bundle.path, manifest, model.bundle.settings)
    with pytest.raises(ConfigError, match="writes no text"):
        save_genai(other, None, tmp_path / "x")
    assert not (tmp_path / "x").exists()
