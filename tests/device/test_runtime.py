"""The model that an app holds: adapters per call, arrays as inputs, and what it must never answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edgelora import LoraConfig, Model, TrainingConfig, evaluate, train
from edgelora.adapter import new_adapter
from edgelora.data import TextSample, TokenSample
from edgelora.errors import ConfigError, DataError, StoreError
from edgelora.tasks import objective_for
from edgelora.text import TextEncoder
from tests.device import tiny

CONFIG = TrainingConfig(num_train_epochs=6, batch_size=8, learning_rate=2e-2)
TEXTS = [row["text"] for row in tiny.commands()]


def learn(model: Model, name: str, names: dict[str, str] | None = None, **options) -> None:
    data = [TextSample(r["text"], names[r["label"]] if names else r["label"]) for r in tiny.commands()]
    train(model, name, data, config=CONFIG, **options)


def test_the_base_alone_is_torchs(base, open_model):
    """No adapter: the embedding is the base's own, mean over the tokens, unit length."""
    import torch

    model = open_model("sentence-embedding")
    feeds = {name: torch.from_numpy(x) for name, x in model.encode(TEXTS).items()}
    with torch.no_grad():
        hidden = base(**feeds).last_hidden_state
    mask = feeds["attention_mask"][..., None].float()
    wanted = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(model.predict(TEXTS), wanted, atol=1e-5)


def test_a_fresh_adapter_changes_nothing(open_model):
    """B is zero: bit for bit the base."""
    model = open_model("sentence-embedding")
    fresh = new_adapter(model.bundle.manifest, LoraConfig(r=4))
    assert np.array_equal(model.predict(TEXTS, fresh), model.predict(TEXTS))


def test_the_answer_does_not_depend_on_the_company(open_model):
    """Batches, order and padding make no difference beyond rounding; more texts than a batch holds."""
    model = open_model("sentence-embedding")
    many = TEXTS * 3
    together = np.asarray(model.predict(many))
    alone = np.concatenate([np.asarray(model.predict([text])) for text in many[:24]])
    np.testing.assert_allclose(together[:24], alone, atol=1e-5)
    np.testing.assert_allclose(np.asarray(model.predict(many[::-1]))[::-1], together, atol=1e-5)


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification"])
def test_short_texts_are_not_padded_to_the_longest_of_all(open_model, task):
    """Texts of similar length run together, and the answers come in the order of the texts."""
    model = open_model(task)
    if task == "sequence-classification":
        learn(model, "a")
    else:
        samples = [TokenSample(tuple(text.split()), ("O",) * (len(text.split()) - 1) + ("W",)) for text in TEXTS]
        train(model, "a", samples, config=CONFIG)
    texts = [" ".join([text] * (1 + 7 * (i % 5 == 0))) for i, text in enumerate(TEXTS * 3)]
    assert isinstance(model.encoder, TextEncoder)
    lengths = [len(ids) for ids in model.encoder.tokens(texts)]
    cells: list[int] = []

    def collate(ids: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        made = TextEncoder.collate(model.encoder, ids)
        cells.append(made["input_ids"].size)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.encoder, "collate", collate)
        together = model.predict(texts, "a")
    assert together == [model.predict([text], "a")[0] for text in texts]
    assert sum(lengths) <= sum(cells) < 0.8 * max(lengths) * len(texts)


def test_no_texts_no_answers(open_model):
    model = open_model()
    learn(model, "a")
    assert model.predict([], "a") == []
    assert model.predict([], adapters=[]) == []
    assert model.predict_proba([], "a").shape == (0, 3)
    assert np.shape(open_model("sentence-embedding", "other").predict([])) == (0, 32)


@pytest.mark.parametrize("inputs", ["make it warm", [None], [5], ["fine", b"bytes"], ["half \ud83d"], [["nested"]]])
def test_what_is_no_list_of_texts_is_refused(open_model, inputs):
    with pytest.raises(DataError):
        open_model("sentence-embedding").predict(inputs)


def test_a_text_of_nothing_known_still_has_an_answer(open_model):
    model = open_model("sentence-embedding")
    answers = np.asarray(model.predict(["", "???", "\x00", "zzz " * 500, "😀"]))
    assert np.isfinite(answers).all()


def test_a_removed_adapter_is_not_remembered(open_model):
    """Version 1 of the next person by that name is not version 1 of the last."""
    model = open_model()
    learn(model, "a")
    assert set(model.predict(TEXTS, "a")) <= {"bright", "quiet", "warm"}
    model.store.remove("a")
    with pytest.raises(StoreError, match="no adapter 'a'"):
        model.predict(TEXTS, "a")
    learn(model, "a", {"bright": "x", "quiet": "y", "warm": "z"})
    assert model.store.current_version("a") == 1
    assert set(model.predict(TEXTS, "a")) <= {"x", "y", "z"}


def test_another_process_s_new_version_is_seen(open_model):
    """Two models on one store: what one publishes or rolls back, the other uses at its next call."""
    model, other = open_model(), open_model()
    learn(model, "a")
    first = other.predict_proba(TEXTS, "a")
    learn(model, "a", again=True)
    second = other.predict_proba(TEXTS, "a")
    assert not np.array_equal(first, second)
    model.store.rollback("a")
    assert np.array_equal(other.predict_proba(TEXTS, "a"), first)
    assert not np.array_equal(other.predict_proba(TEXTS, "a"), second)


def test_an_adapter_that_is_loaded_is_not_copied(open_model):
    """Activation is a look-up: the same arrays each time."""
    model = open_model()
    learn(model, "a")
    one, two = model.activate("a"), model.activate("a")
    assert all(one.feeds[name] is two.feeds[name] for name in one.feeds)


def test_adapters_in_memory_are_prepared_once_a_call(open_model, monkeypatch: pytest.MonkeyPatch):
    """Not once a row: 24 rows of one adapter are one batch of the graph."""
    model = open_model()
    learn(model, "a")
    adapter = model.store.load("a")
    runs: list[int] = []
    run = model.bundle.forward.run
    monkeypatch.setattr(model.bundle.forward, "run", lambda feeds: runs.append(len(feeds["input_ids"])) or run(feeds))
    by_name = model.predict(TEXTS, "a")
    runs.clear()
    assert model.predict(TEXTS, adapters=[adapter] * 24) == by_name
    assert runs == [24]


def test_arrays_as_inputs(open_model):
    model = open_model("sentence-embedding")
    feeds = model.encode(TEXTS)
    answers = np.asarray(model.predict(TEXTS))
    assert np.array_equal(model.predict(feeds), answers)
    assert np.array_equal(model.predict({n: x.astype(np.int32) for n, x in feeds.items()}), answers)


def test_arrays_that_do_not_fit_are_all_named(open_model):
    model = open_model("sentence-embedding")
    feeds = model.encode(TEXTS)
    missing = {n: x for n, x in feeds.items() if n != "attention_mask"} | {"extra": np.zeros(3)}
    with pytest.raises(DataError, match=r"attention_mask is missing.*extra is not an input"):
        model.predict(missing)
    with pytest.raises(DataError, match="input_ids has shape"):
        model.predict(feeds | {"input_ids": feeds["input_ids"][0]})
    with pytest.raises(DataError, match="attention_mask"):
        model.predict(feeds | {"attention_mask": feeds["attention_mask"][:5]})
    with pytest.raises(DataError, match="attention_mask"):
        model.predict(feeds | {"attention_mask": feeds["attention_mask"][:, :3]})
    with pytest.raises(DataError, match="input_ids has type float64"):
        model.predict(feeds | {"input_ids": feeds["input_ids"] + 0.5})
    with pytest.raises(DataError, match="input_ids"):
        model.predict(feeds | {"input_ids": np.full(feeds["input_ids"].shape, "x")})
    with pytest.raises(DataError, match="is missing"):
        model.predict({})


def test_an_adapter_without_a_head_says_so(open_model):
    model = open_model()
    with pytest.raises(ConfigError, match="no adapter was given"):
        model.predict(TEXTS)
    with pytest.raises(ConfigError, match="no adapter was given"):
        model.predict(TEXTS[:2], adapters=[None, None])


def test_probabilities_are_the_labels(open_model):
    model = open_model()
    learn(model, "a")
    shares = model.predict_proba(TEXTS, "a")
    np.testing.assert_allclose(shares.sum(1), 1.0, atol=1e-12)
    labels = model.labels("a")
    assert [labels[i] for i in shares.argmax(1)] == model.predict(TEXTS, "a")


def test_token_labels_are_those_of_the_words(open_model):
    """One label a word, whatever the padding and the pieces; texts and lists of words alike; None beyond the end."""
    model = open_model("token-classification")
    things = {"room", "light", "music", "kitchen", "hall"}
    texts = [row["text"] for row in tiny.commands()]
    data = [TokenSample(tuple(t.split()), tuple("THING" if w in things else "O" for w in t.split())) for t in texts]
    long = ("the room " * 12).split()  # 24 words, of which 14 fit
    data.append(TokenSample(tuple(long), tuple("THING" if w in things else "O" for w in long)))
    train(model, "a", data, config=replace(CONFIG, num_train_epochs=12))
    answers = model.predict([*texts, " ".join(long)], "a")
    assert isinstance(answers, list)
    assert [len(a) for a in answers] == [len(s.words) for s in data]
    assert answers[-1][14:] == [None] * 10 and None not in answers[-1][:14]
    assert model.predict([s.words for s in data], "a") == answers
    assert model.predict([texts[0]], "a") == answers[:1], "padding changes nothing"
    pairs = [(said, label) for a, s in zip(answers, data, strict=True) for said, label in zip(a, s.labels, strict=True)]
    counted = [said == label for said, label in pairs if said is not None]
    measured = evaluate(model.bundle, model.store.load("a"), objective_for(model, data, model.labels("a"), CONFIG))
    assert np.mean(counted) == pytest.approx(measured["accuracy"])
    assert measured["accuracy"] > 0.8
    assert model.predict(["lighters"], "a")[0] in (["O"], ["THING"]), "three pieces, one word"
    assert model.predict([], "a") == []
    assert model.predict([""], "a") == [[]]
    for wrong in ("the room", [5], [["the", 5]]):
        with pytest.raises(DataError):
            model.predict(wrong, "a")
