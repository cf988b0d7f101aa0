"""A real encoder with weights of 4 bits: small, near its source at every size, and it learns as float32 does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.clinc import ClincOptions, find_data, read_clinc
from benchmarks.measure import BenchmarkError
from edgelora import LoraConfig, TrainingConfig, evaluate
from edgelora.adapter import new_adapter, read_adapter, write_adapter
from edgelora.bundle import Bundle
from edgelora.data import TextSample
from edgelora.errors import ConversionError
from edgelora.probes import random_head
from edgelora.quantization import check_quantization
from edgelora.runtime import Model
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora_tools.recipes import fetch, load_recipe
from tests.convert.bundles import base_outputs, relative, to_bundle, train_feeds

INTENTS, BATCH, STEPS = 8, 16, 30


@pytest.fixture(scope="module")
def texts() -> tuple[list[TextSample], list[TextSample]]:
    """Utterances of some intents: to learn from, and to test with."""
    try:
        intents, train, test = read_clinc(find_data(), ClincOptions(per_intent=20))
    except (BenchmarkError, OSError) as error:
        pytest.skip(f"no CLINC150: {error}")
    kept = intents[:INTENTS]
    return tuple(  # pyright: ignore[reportReturnType]
        [TextSample(t, intents[i]) for t, i in zip(part.texts, part.labels, strict=True) if intents[i] in kept]
        for part in (train, test)
    )


@pytest.fixture(scope="module")
def both(texts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """all-MiniLM-L3 in float32 and in int4."""
    folder = tmp_path_factory.mktemp("small")
    try:
        source = fetch(load_recipe("minilm-l3"), lambda _: None)
    except ConversionError as error:
        pytest.skip(f"the recipe's model cannot be fetched: {error}")
    calibration = folder / "texts.jsonl"
    calibration.write_text("".join(json.dumps({"text": s.text, "label": s.label}) + "\n" for s in texts[0][::16]))
    common = {"task": "sequence-classification", "target_modules": ("query", "value")}
    real = to_bundle(Path(source), folder, "real", **common)
    return real, to_bundle(Path(source), folder, "int4", quantize="int4", calibration=calibration, **common)


def test_it_is_small_and_its_gradients_keep_their_direction(both) -> None:
    real, small = both
    assert small.manifest.files["weights.bin"].size < 0.3 * real.manifest.files["weights.bin"].size
    assert small.manifest.source["products"]["int4 by blocks"] > 0
    assert small.manifest.source["float32"] == []
    verdicts = check_quantization(small)
    assert {v.id for v in verdicts} == {p.id for p in small.manifest.trainable}
    assert all(v.passed and v.cosine >= 0.99 and abs(v.size - 1) < 0.1 for v in verdicts)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (3, 20), (5, 33)])
def test_it_is_near_its_source_at_every_size(both, batch, length) -> None:
    rng = np.random.default_rng(batch)
    inputs = {"input_ids": rng.integers(1000, 9000, (batch, length)), "attention_mask": np.ones((batch, length), int)}
    inputs |= {s.name: np.zeros((batch, length), int) for s in both[0].manifest.inputs if s.name not in inputs}
    for name, y in base_outputs(both[0], inputs).items():
        assert relative(base_outputs(both[1], inputs)[name], y) < 0.2
    cotangent = {"cotangent.logits": rng.standard_normal((batch, 3)).astype(np.float32)}
    head = random_head(both[0].manifest, np.random.default_rng(0))
    ours, theirs = (
        b.graph("train-cotangent.onnx").run({**train_feeds(b, inputs), **head, **cotangent}) for b in reversed(both)
    )
    for name, wanted in theirs.items():
        assert ours[name].shape == wanted.shape


def test_what_is_computed_again_decodes_again(both) -> None:
    """No matrix is kept real from the forward pass to the backward pass."""
    small = both[1]
    record = small.training("cotangent", dropout=False)
    assert record.recomputed is not None
    plain, again = (onnx.load(small.path / f, load_external_data=False) for f in (record.file, record.recomputed.file))
    decoders = [sum(n.op_type == "DequantizeLinear" for n in m.graph.node) for m in (plain, again)]
    assert decoders[1] > 1.2 * decoders[0]


def test_it_learns_as_float32_does_and_keeps_what_it_learned(both, texts, tmp_path) -> None:
    """The same values, data and order, steps in turn; the adapter read again answers alike."""
    train, test = texts
    config = TrainingConfig(batch_size=BATCH, learning_rate=5e-3, num_train_epochs=5)
    labels = tuple(sorted({s.label for s in train}))
    sides = []
    for bundle in both:
        adapter = new_adapter(bundle.manifest, LoraConfig(r=8, lora_alpha=16), labels)
        model = Model.open(bundle.path, tmp_path / bundle.path.stem)
        objective = objective_for(model, train, labels, config)
        held_out = objective_for(model, test, labels, config)
        sides.append((bundle, Trainer(bundle, adapter, objective, config), held_out))
    batches = [rows for epoch in range(5) for rows in sides[0][1].batches(epoch)][:STEPS]
    losses = np.array([[trainer.step(rows).loss for _, trainer, _ in sides] for rows in batches])
    assert losses[-5:, 1].mean() < 0.5 * losses[:5, 1].mean()
    assert np.abs(losses[:, 0] - losses[:, 1]).max() < 0.1 * losses[0, 0]
    learned = [(bundle, trainer.current(), held_out) for bundle, trainer, held_out in sides]
    accuracy = [evaluate(*one)["accuracy"] for one in learned]
    assert accuracy[1] > 0.8
    assert abs(accuracy[0] - accuracy[1]) < 0.04
    bundle, adapter, objective = learned[1]
    write_adapter(adapter, tmp_path / "kept")
    kept = read_adapter(tmp_path / "kept", bundle.manifest)
    assert evaluate(bundle, kept, objective) == evaluate(bundle, adapter, objective)
