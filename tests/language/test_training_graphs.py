"""Training and scoring of language models: packed and padded rows give PEFT's losses and gradients of each sample."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from benchmarks import language_curve
from edgelora.bundle import Bundle
from edgelora.manifest import InsertionPoint
from edgelora_tools.compile import offered
from edgelora_tools.composites import recognise_composites
from edgelora_tools.graphs import prune, standard
from edgelora_tools.insertion import find_sites
from edgelora_tools.losses import LOSSES
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.memory_table import _profile, memory_table, table_of_texts
from edgelora_tools.normalize import normalize
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.padding import ignores_padding
from edgelora_tools.runner import open_session
from edgelora_tools.score_graph import score_graph
from edgelora_tools.sources import Source
from edgelora_tools.sources.cached_module import tokens_of
from edgelora_tools.sources.causal_lm import decoder_source
from edgelora_tools.training_graphs import training_graph
from tests import families
from tests.language_models import EOS, VOCABULARY, build

RANK = 2
TOLERANCE = 1e-4
OPTIONS = ConvertOptions(task="text-generation")
(LOSS,) = LOSSES["text-generation"]
LENGTHS = (9, 6, 12, 1, 5)
ROWS = [(0, 1), (None, None, 2), (None, 3, 4)]  # samples, and where there is padding, in rows of 16


@pytest.fixture(scope="module")
def prepared(language_source: Source) -> Callable[[str], tuple[ir.Model, list[InsertionPoint], bool]]:
    """prepared(kind): the base in its normal form, its points, and whether it is blind to padding."""

    @functools.cache
    def made(kind: str) -> tuple[ir.Model, list[InsertionPoint], bool]:
        source = language_source if kind == "llama" else decoder_source(build(kind), kind, {}, {}, [EOS])
        model = normalize(source.model.clone())
        sizes = measure_shapes(model)
        recognise_composites(model, long_rows=True)
        base = prune(model, OPTIONS)
        return base, [site.point for site in find_sites(base)], ignores_padding(standard(base), sizes[0])

    return made


def batch() -> tuple[dict[str, np.ndarray], list[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, slice]]]]:
    """Rows of samples, and each sample: ids, the tokens that come next, weights (0 for a prompt), where it stands."""
    rng, length = np.random.default_rng(3), 16
    texts = [rng.integers(3, VOCABULARY, size + 1) for size in LENGTHS]
    ids, mask, labels = (np.zeros((len(ROWS), length), np.int64) for _ in range(3))
    weight, samples = np.zeros((len(ROWS), length), np.float32), []
    for row, members in enumerate(ROWS):
        at = 0
        for number, member in enumerate(members, 1):
            if member is None:
                at += 2
                continue
            text = texts[member]
            place = slice(at, at + len(text) - 1)
            own = (rng.standard_normal(len(text) - 1) * (np.arange(len(text) - 1) >= len(text) // 3)).astype(np.float32)
            ids[row, place], labels[row, place], mask[row, place], weight[row, place] = text[:-1], text[1:], number, own
            samples.append((text[:-1], text[1:], own, (row, place)))
            at = place.stop
    tokens = {name: x.numpy() for name, x in tokens_of(ids.tolist(), mask.tolist()).items()}
    return {**tokens, "labels": labels, "loss_weight": weight}, samples


def random_adapter(points: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        name: (rng.standard_normal(shape) * 0.2).astype(np.float32)
        for p in points
        for name, shape in ((p.input_a, (p.in_features, RANK)), (p.input_b, (RANK, p.out_features)))
    }


def by_peft(kind: str, points: Any, adapter: dict[str, np.ndarray], samples: Any) -> Any:
    """Losses of every sample's tokens, and the gradients of Σ w·n."""
    ids = [p.id for p in points]
    wrapped = families.peft_model(build(kind), adapter, ids, alpha=RANK)
    found = []
    for text, after, weight, _ in samples:
        logits = wrapped(input_ids=torch.from_numpy(text[None])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(after), reduction="none")
        (losses * torch.from_numpy(weight)).sum().backward()
        found.append(losses.detach().numpy())
    return found, families.peft_gradients(wrapped, ids)


def run(model: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with open_session(model) as session:
        names = [y.name for y in session.get_outputs()]
        wanted = {x.name for x in session.get_inputs()}
        made = session.run(names, {name: x for name, x in feeds.items() if name in wanted})
    return dict(zip(names, map(np.asarray, made), strict=True))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "thirds"])
def test_packed_and_padded_rows_train_as_each_sample_alone(kind: str, prepared: Any) -> None:
    base, points, unpadded = prepared(kind)
    points = [point for point in points if point.id != "lm_head"]
    assert unpadded
    feeds, samples = batch()
    adapter = random_adapter(points)
    losses, wanted = by_peft(kind, points, adapter, samples)

    made = training_graph(base, points, OPTIONS, LOSS, False, unpadded, "train.onnx", {"batch": 4096, "sequence": 64})
    assert any(node.op_type == "Loop" for node in made.model.graph)
    got = run(made.model, feeds | adapter)
    total = sum(float(n @ w) for n, (_, _, w, _) in zip(losses, samples, strict=True))
    assert got["loss"] == pytest.approx(total, rel=1e-5, abs=1e-5)
    for name, gradient in wanted.items():
        assert relative(got[f"grad.{name}"], gradient) < TOLERANCE, name

    again = run(made.forms["train-recomputed.onnx"], feeds | adapter)
    assert all(relative(again[name], y) < 1e-5 for name, y in got.items())

    asked = np.where(feeds["loss_weight"] != 0, feeds["labels"], -100)
    scores = run(score_graph(base, points, OPTIONS, unpadded), feeds | adapter | {"labels": asked})["nll"]
    assert not scores[asked < 0].any()
    for n, (_, _, weight, place) in zip(losses, samples, strict=True):
        np.testing.assert_allclose(scores[place][weight != 0], n[weight != 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "adapted"), [("all-linear", False), (("lm_head", "q_proj"), True), (None, False)], ids=str
)
def test_the_head_is_adapted_where_it_is_named(targets: Any, adapted: bool, prepared: Any) -> None:
    base, points, _ = prepared("llama")
    options = replace(OPTIONS, target_modules=targets)
    found = offered(base, find_sites(base), options)
    assert {p.id for p in points} - {p.id for p in found} == (set() if adapted else {"lm_head"})


def test_an_adapter_at_the_head_trains_without_blocks(prepared: Any) -> None:
    base, points, unpadded = prepared("llama")
    points = [point for point in points if point.id in ("lm_head", "model.layers.1.mlp.up_proj")]
    assert len(points) == 2
    feeds, samples = batch()
    adapter = random_adapter(points)
    _, wanted = by_peft("llama", points, adapter, samples)
    made = training_graph(base, points, OPTIONS, LOSS, False, unpadded, "train.onnx").model
    assert not any(node.op_type == "Loop" for node in made.graph)
    got = run(made, feeds | adapter)
    for name, gradient in wanted.items():
        assert relative(got[f"grad.{name}"], gradient) < TOLERANCE, name


def test_memory_is_foretold(language_bundle: Path) -> None:
    manifest = Bundle.open(language_bundle).manifest
    for file in ("train-cross-entropy.onnx", "score.onnx"):
        path = language_bundle / file
        for batch, sequence in ((1, 256), (3, 50), (1, 20)):
            sizes = {"batch": batch, "sequence": sequence}
            (held,) = _profile(path, ir.load(path), [sizes], prepack=True)
            most, foretold = max(held.in_use.values()), manifest.memory[file].peak(sizes)
            assert 0.999 * most <= foretold < 1.02 * most, (file, sizes)


def test_a_head_that_is_cut_into_blocks_is_read_whole_and_never_packed(language_bundle: Path) -> None:
    manifest = Bundle.open(language_bundle).manifest
    forward, train = (manifest.memory[file] for file in ("forward.onnx", "train-cross-entropy.onnx"))
    weights = [x.const_value for x in ir.load(language_bundle / "forward.onnx").graph.initializers.values()]
    head = max(w.nbytes for w in weights if w is not None)  # or the table of embeddings, which is as large
    assert train.read_always - forward.read_always == head


def test_a_few_runs_tell_the_memory_of_all_sizes(language_bundle: Path) -> None:
    """As many as other models are run at tell the same."""
    path = language_bundle / "train-cross-entropy.onnx"
    graph = ir.load(path)
    few = table_of_texts(path, graph, "batch", "sequence")
    many = memory_table(path, graph, [{"batch": n, "sequence": 64 * n} for n in (1, 2)])
    assert few is not None and many is not None
    for batch, sequence in ((1, 64), (2, 1000), (16, 33)):
        sizes = {"batch": batch, "sequence": sequence}
        assert few.peak(sizes) == pytest.approx(many.peak(sizes), rel=1e-3), sizes


def test_the_curve_of_training_is_pefts(
    language_bundle: Path, language_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and then it sleeps " * 4)
    language_curve.main([str(language_bundle), str(language_folder), str(text), "--steps", "4", "--tokens", "24"])
    gradients, *_, losses, _ = capsys.readouterr().out.splitlines()
    assert float(gradients.split()[-2]) < TOLERANCE
    assert float(losses.split()[3]) < 1e-4


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
