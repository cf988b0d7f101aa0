"""A GGUF file of 4-bit codes: the int4 base's layers have these codes and no others; it is the model that torch reads
from it, but for the head and table, which have codes of 8 bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.own_codes import own_codes
from edgelora_tools.sources.causal_lm import decoder_source, load_causal_lm
from tests.language.gguf_files import gguf_file
from tests.language_models import build


def matrices(causal: Any) -> dict[str, np.ndarray]:
    """The layers' matrices `[in, out]` by name."""
    return {n: x.numpy().T for n, x in causal.state_dict().items() if x.ndim == 2 and ".layers." in n}


@pytest.mark.parametrize("codes", ["Q4_0", "Q4_1", "Q8_0", None])
def test_codes_are_found_in_every_matrix(codes: str | None, tmp_path: Path) -> None:
    """Also where the order of the rows is another, as of queries and keys."""
    causal = load_causal_lm(gguf_file(build("llama"), tmp_path / "tiny.gguf", codes))[0]
    for name, w in matrices(causal).items():
        made = own_codes(w)
        assert (made is not None) == (codes in ("Q4_0", "Q4_1")), name
        if made is not None:
            assert (made.offset is None) == (codes == "Q4_0")
            np.testing.assert_allclose(made.real(len(w)), w, rtol=0, atol=2e-7 * np.abs(w).max())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Bundle]:
    """The model that transformers reads from a file of Q4_1, and its int4 bundle."""
    folder = tmp_path_factory.mktemp("codes")
    read = load_causal_lm(gguf_file(build("llama"), folder / "tiny.gguf", "Q4_1"))
    path = folder / "int4.edgelora"
    convert(decoder_source(*read), path, ConvertOptions(task="text-generation", quantize="int4"))
    return read[0], Bundle.open(path)


def test_the_base_takes_them_as_they_are(loaded: tuple[Any, Bundle]) -> None:
    _, bundle = loaded
    assert bundle.manifest.source["products"] == {"int8 by tokens": 1, "own int4 codes by blocks": 14}
    verdict = check(bundle)
    assert verdict.passed
    assert all(point.cosine > 1 - 5e-4 for point in verdict.quantized)  # that of the head's codes


def test_it_trains_on_torchs_own_loss(loaded: tuple[Any, Bundle]) -> None:
    """Which, with the head that its codes stand for, is that of the training graph to float32's rounding; scoring and
    generation round blocks of inputs."""
    causal, bundle = copy.deepcopy(loaded[0]), loaded[1]
    language = bundle.manifest.language
    assert language is not None
    ids = np.random.default_rng(0).integers(3, 200, (2, 12))
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(12) + np.zeros_like(ids),
        "labels": np.roll(ids, -1, 1),
        **absent_adapter(bundle.manifest),
    }
    training = bundle.path / bundle.training("cross-entropy", dropout=False).file
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(training).graph.initializer}
    (name,) = (name for name in weights if name.endswith(".codes8"))
    decoded = weights[name] * weights[name.replace("codes8", "scale8")]
    real = causal.lm_head.weight
    assert real is causal.model.embed_tokens.weight
    assert np.abs(decoded - real.detach().numpy()).max() < 0.005 * np.abs(decoded).max()
    with torch.no_grad():
        real.copy_(torch.tensor(decoded))
        logits = causal(input_ids=torch.from_numpy(ids), use_cache=False).logits
        nll = -torch.log_softmax(logits, -1).gather(2, torch.from_numpy(feeds["labels"])[..., None])[..., 0].numpy()
    weight = np.full(ids.shape, 1 / ids.size, np.float32)
    made = bundle.graph(training.name).run(feeds | {"loss_weight": weight}, ["loss"])["loss"]
    assert float(made) == pytest.approx(float(nll.mean()), rel=1e-5)
    scored = bundle.graph(language.score).run(feeds, ["nll"])["nll"]
    assert np.abs(scored - nll).max() < 0.1 * nll.max()
    assert float(scored.mean()) == pytest.approx(float(nll.mean()), rel=0.02)


def test_generation_multiplies_by_the_same_codes(loaded: tuple[Any, Bundle]) -> None:
    _, bundle = loaded
    language = bundle.manifest.language
    assert language is not None
    for file in (language.score, language.decode):
        products = [
            n for n in onnx.load(bundle.path / file, load_external_data=False).graph.node if n.op_type == "MatMulNBits"
        ]
        assert len(products) == 14
