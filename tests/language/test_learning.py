"""A decoder learns from text: losses, gradients and metrics against torch, whatever the rows look like."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgelora as el
from edgelora.errors import ConfigError, DataError
from edgelora.evaluation import evaluate_each
from edgelora.language.objective import LanguageModeling, counted_losses
from edgelora.language.packing import RowInputs, packed, row_of
from edgelora.language.preferences import DirectPreference
from edgelora.language.samples import Answer, Conversation, LanguageSample, Passage, Preference, passages_of
from edgelora.language.tokenized import Lengths, rows_of
from edgelora.runtime import Model
from edgelora.tasks import objective_for
from edgelora.tasks.text_generation import tokens_of
from edgelora.trainer import Trainer, evaluate
from tests.language.texts import LINES, LONG

SAMPLES: list[LanguageSample] = [
    Answer("What is the capital of France?", " Paris"),
    Passage(LINES[0]),
    Answer("once upon a time", " there was a very little girl by the sea"),
    Answer("She said:", " merci!"),
    Passage("a lazy dog"),
]
PAIRS = [
    Preference("What is the capital of France?", " Paris is.", " I do not know, and I do not care."),
    Preference("once upon a time", " there was a girl", " no."),
    Preference("the quick brown fox", " jumps over the lazy dog", " laughed"),
]


def torch_losses(causal: Any, adapter: el.Adapter | None, ids: torch.Tensor, tensors: Any = None) -> torch.Tensor:
    """−log p of each token after the first of one row, float64, with LoRA's product at every adapted point."""
    import copy

    double = copy.deepcopy(causal).double()
    scale = 1.0
    hooks = []
    if adapter is not None:
        tensors = tensors or {name: torch.from_numpy(x).double() for name, x in adapter.tensors.items()}
        assert isinstance(adapter.config, el.LoraConfig)
        scale = adapter.config.lora_alpha / adapter.config.r
        for point in {name.rsplit(".", 1)[0] for name in adapter.tensors}:
            a, b = tensors[f"{point}.lora_A"], tensors[f"{point}.lora_B"]
            module = double.get_submodule(point)
            hooks.append(module.register_forward_hook(lambda m, x, y, a=a, b=b: y + scale * (x[0] @ a) @ b))
    logits = double(input_ids=ids[None, :-1]).logits[0]
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")


def counted(model: Model, samples: Sequence[LanguageSample]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The tokens of each sample, and which of those after the first count."""
    rows = rows_of(samples, tokens_of(model), Lengths(192, 192))
    return [(torch.from_numpy(np.append(r.inputs, r.labels[-1])), torch.from_numpy(r.counted)) for r in rows]


def trainer_of(model: Model, adapter: el.Adapter, objective: Any, **settings: Any) -> Trainer:
    return Trainer(model.bundle, adapter, objective, el.TrainingConfig(batch_size=16, **settings))


def close(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for name, x in one.items():
        scale = np.linalg.norm(other[name])
        assert np.linalg.norm(x - other[name]) <= tolerance * scale, name
        assert scale > 0


@pytest.mark.parametrize("layout", ["rows", "packed", "parts"])
def test_loss_and_gradients_are_torchs_whatever_the_rows(model: Model, causal: Any, drawn: Any, layout: str):
    adapter = drawn(0)
    tensors = {name: torch.from_numpy(x).double().requires_grad_() for name, x in adapter.tensors.items()}
    told = counted(model, SAMPLES)
    losses = torch.cat([torch_losses(causal, adapter, ids, tensors)[of] for ids, of in told])
    losses.mean().backward()
    rows = rows_of(SAMPLES, tokens_of(model), Lengths(192, 192))
    if layout == "packed":
        rows = packed(rows, 48)
        assert len(rows) < len(SAMPLES)
    settings = {"micro_batch_size": 2} if layout == "parts" else {}
    trainer = trainer_of(model, adapter, LanguageModeling(rows), **settings)
    loss = trainer.accumulate(np.arange(len(rows)))
    assert loss == pytest.approx(losses.mean().item(), rel=1e-5)
    close(trainer.gradients(), {name: x.grad.numpy() for name, x in tensors.items() if x.grad is not None}, 1e-4)


def test_metrics_of_held_out_text_are_torchs(model: Model, causal: Any, drawn: Any):
    adapter = drawn(1)
    losses = torch.cat([torch_losses(causal, adapter, ids)[of] for ids, of in counted(model, SAMPLES)])
    found = evaluate(model.bundle, adapter, objective_for(model, SAMPLES, None, el.TrainingConfig()), batch_size=2)
    loss = losses.mean().item()
    first = {
        sample: int(tokens_of(model).encode(sample.text).bytes[0]) for sample in SAMPLES if isinstance(sample, Passage)
    }
    told = sum(len(s.completion) if isinstance(s, Answer) else len(s.text) - first[s] for s in SAMPLES)  # pyright: ignore
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(losses.sum().item() / np.log(2) / told, rel=1e-5)


def test_adapters_without_a_score_graph_are_judged_by_all_logits(model: Model, drawn: Any):
    objective = objective_for(model, SAMPLES, None, el.TrainingConfig())
    assert isinstance(objective, LanguageModeling)
    rows = np.arange(len(SAMPLES))
    judge = objective.judge(model.bundle.manifest, "ia3")
    assert judge.file is None and judge.outputs == ("logits",)
    feeds = {**objective.inputs(rows), **model.bundle.feeds(drawn(2))}
    score = objective.judge(model.bundle.manifest, "lora")
    (nll,) = model.bundle.graph(str(score.file)).run(feeds, score.outputs).values()
    logits = model.bundle.forward.run(feeds, judge.outputs)["logits"]
    ours, theirs = (np.asarray(objective.measured(made, rows), np.float64) for made in (logits, nll))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def trl_dpo(causal: Any, adapter: el.Adapter, tensors: Any, model: Model, beta: float) -> tuple[torch.Tensor, ...]:
    """TRL's sigmoid loss: −log σ(β·(log-ratio of the policy − that of the reference)), and the rewards' margins."""
    answers = counted(model, [answer for pair in PAIRS for answer in pair.answers])
    policy = torch.stack([-torch_losses(causal, adapter, ids, tensors)[of].sum() for ids, of in answers])
    with torch.no_grad():
        reference = torch.stack([-torch_losses(causal, None, ids)[of].sum() for ids, of in answers])
    chosen_rewards, rejected_rewards = beta * (policy - reference)[::2], beta * (policy - reference)[1::2]
    logits = (policy[::2] - policy[1::2]) - (reference[::2] - reference[1::2])
    return -torch.nn.functional.logsigmoid(beta * logits), chosen_rewards - rejected_rewards


@pytest.mark.parametrize("part", [None, 1])
def test_dpo_is_trls(model: Model, causal: Any, drawn: Any, part: int | None):
    adapter, beta = drawn(3), 0.3
    tensors = {name: torch.from_numpy(x).double().requires_grad_() for name, x in adapter.tensors.items()}
    losses, margins = trl_dpo(causal, adapter, tensors, model, beta)
    losses.mean().backward()
    config = el.TrainingConfig(loss="dpo", beta=beta)
    objective = objective_for(model, PAIRS, None, config)
    trainer = trainer_of(model, adapter, objective, micro_batch_size=part)
    assert trainer.accumulate(np.arange(len(PAIRS))) == pytest.approx(losses.mean().item(), rel=1e-5)
    close(trainer.gradients(), {name: x.grad.numpy() for name, x in tensors.items() if x.grad is not None}, 1e-4)
    found = evaluate(model.bundle, adapter, objective, batch_size=2)
    assert found["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found["margin"] == pytest.approx(margins.mean().item(), rel=1e-5)
    assert found["accuracy"] == float((margins > 0).double().mean())


def test_preferences_are_learned(model: Model):
    """From the base, where nothing is preferred, to answers that gained on those that lost."""
    config = el.TrainingConfig(num_train_epochs=12, batch_size=3, learning_rate=1e-2)
    report = el.train(model, "anna", PAIRS, validation=PAIRS, config=config)
    assert report.history[0]["train_loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert report.history[-1]["eval_loss"] < 0.6 * np.log(2)
    assert report.history[-1]["eval_accuracy"] == 1.0


def test_a_text_is_learned_and_the_metrics_of_many_adapters_are_those_of_all_their_tokens(model: Model):
    config = el.TrainingConfig(num_train_epochs=6, batch_size=2, learning_rate=2e-2, max_length=32)
    texts = {name: list(passages_of(LINES[i] * 3)) for i, name in enumerate(("anna", "ben"))}
    for name, own in texts.items():
        report = el.train(model, name, own, validation=own, config=config, gate=el.Gate(own))
        assert report.history[-1]["eval_loss"] < 0.95 * report.history[0]["train_loss"]
        assert report.gate is not None and report.gate.metric == "loss" and report.active
    samples, adapters = [*texts["anna"], *texts["ben"]], ["anna"] * len(texts["anna"]) + ["ben"] * len(texts["ben"])
    mean, each = evaluate_each(model, samples, adapters, config=config)
    tokens = dict[str, float]()
    for name, own in texts.items():
        objective = objective_for(model, own, None, config)
        tokens[name] = objective.weight(np.arange(len(objective)))
    total = sum(tokens.values())
    assert mean["loss"] == pytest.approx(sum(tokens[name] * each[name]["loss"] for name in each) / total)
    assert mean["perplexity"] == pytest.approx(np.exp(mean["loss"]))
    with_the_others, _ = evaluate_each(model, samples, adapters[::-1], config=config)
    assert with_the_others["loss"] > mean["loss"]


def test_packing_shares_rows_and_changes_no_loss(model: Model, drawn: Any):
    apart, shared = (
        objective_for(model, SAMPLES, None, el.TrainingConfig(packing=packing)) for packing in (False, True)
    )
    assert len(shared) < len(apart) == len(SAMPLES)
    one, other = (evaluate(model.bundle, drawn(4), objective) for objective in (apart, shared))
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("samples", "settings", "error", "message"),
    [
        (
            [Answer("a " * 300, "b", where="f, line 9")],
            {},
            DataError,
            r"f, line 9: \d+ tokens, and a row has room for 192",
        ),
        ([Answer("a", "b")], {"max_length": 500}, ConfigError, "max_length 500 is more than this model takes"),
        ([Answer("a", "b")], {"loss": "dpo"}, ConfigError, "prompt, chosen and rejected"),
        (PAIRS, {"loss": "cross-entropy"}, ConfigError, 'learned by the loss "dpo"'),
        ([*PAIRS, *SAMPLES], {}, DataError, "make two files"),
        (PAIRS, {"packing": True}, ConfigError, "preferences are not packed"),
        ([], {"packing": True}, ConfigError, "no training samples"),
        ([Conversation((LONG[1],) * 40, where="f, line 2")], {}, DataError, "f, line 2: .* tokens"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_changes(
    model: Model, samples: Any, settings: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        el.train(model, "anna", samples, config=el.TrainingConfig(**settings))
    assert not model.store.exists("anna")
    assert not model.store.state_path("anna").exists()


def test_the_end_of_a_text_that_is_one_token_is_left_out_where_its_beginning_is_elsewhere(model: Model):
    tokens = tokens_of(model)
    tokens.eos = ()
    lengths, end = Lengths(64, 64), Passage("x", 5, True, where="letters.txt, passage 6")
    rows = rows_of([Passage("a lazy dog", 3, False), end], tokens, lengths)
    assert [len(row) for row in rows] == [len(tokens.encode("a lazy dog", special=False)) - 1]
    assert [len(row) for row in rows_of([Passage("a lazy dog", 4, False), end], tokens, lengths)] == [len(rows[0]) + 1]
    with pytest.raises(DataError, match=r"letters\.jsonl, line 2: .*no two tokens; leave it out"):
        rows_of([Passage("x", where="letters.jsonl, line 2")], tokens, lengths)


def test_dropout_does_not_go_with_preferences(model: Model):
    lora = el.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1)
    with pytest.raises(ConfigError, match="leave lora_dropout out"):
        el.train(model, "anna", PAIRS, lora=lora)


@pytest.mark.parametrize("samples", [SAMPLES, PAIRS])
def test_forward_passes_alone_estimate_the_same_loss(model: Model, drawn: Any, samples: Any):
    objective = objective_for(model, samples, None, el.TrainingConfig())
    rows = np.arange(len(samples))
    exact = trainer_of(model, drawn(5), objective).accumulate(rows)
    estimated = trainer_of(model, drawn(5), objective, gradient="spsa", spsa_epsilon=1e-6).accumulate(rows)
    assert estimated == pytest.approx(exact, rel=1e-4)


def test_the_bases_own_losses_are_asked_for_once(model: Model, drawn: Any):
    objective = objective_for(model, PAIRS, None, el.TrainingConfig())
    assert isinstance(objective, DirectPreference)
    asked: list[int] = []
    base = objective._base
    objective._base = lambda feeds: asked.append(len(feeds["input_ids"]) // 2) or base(feeds)
    first = evaluate(model.bundle, drawn(6), objective, batch_size=2)
    assert evaluate(model.bundle, drawn(6), objective, batch_size=1) == pytest.approx(first, rel=1e-5)
    assert sum(asked) == len(PAIRS)


def test_losses_of_tokens_that_do_not_count_are_none(model: Model):
    objective = objective_for(model, SAMPLES, None, el.TrainingConfig())
    assert isinstance(objective, LanguageModeling)
    rows = np.arange(len(SAMPLES))
    labels, counts = np.asarray(objective.inputs(rows)["labels"], np.int64), objective._rows.counted(rows) > 0
    assert ((labels >= 0) == counts).all() and not counts.all()
    nll = np.full(labels.shape, np.nan)
    nll[counts] = 2.0
    assert counted_losses(nll, objective._rows, rows).sum() == 2.0 * counts.sum()


def test_losses_from_all_logits_take_less_memory_than_these():
    rows = np.arange(16)
    data = RowInputs([row_of(np.arange(32), np.arange(32), np.ones(32, np.bool_), 32)] * len(rows))
    logits = np.random.default_rng(0).standard_normal((len(rows), 32, 1000), np.float32)
    tracemalloc.start()
    found = counted_losses(logits, data, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < logits.nbytes
    wanted = torch.nn.functional.cross_entropy(torch.tensor(logits[3]).double(), torch.arange(32), reduction="none")
    np.testing.assert_allclose(found[3], wanted.numpy(), rtol=1e-12)


def test_the_folder_of_a_bundle_holds_its_tokenizer(language_bundle: Path):
    assert tokens_of(Model.open(language_bundle)).template.render(LONG).startswith("<|user|>What is")
