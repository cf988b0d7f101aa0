"""What tests of training share: data that the tiny base can learn, a training, a stop in the middle of one."""

from __future__ import annotations

import numpy as np

from edgelora import LoraConfig, TrainingConfig, train
from edgelora.data import NumberSample, PairSample, TextSample, TokenSample
from tests.device import tiny

FAST = TrainingConfig(num_train_epochs=4, batch_size=8, learning_rate=2e-2)


def samples(count: int = 24) -> list[TextSample]:
    return [TextSample(row["text"], row["label"]) for row in tiny.commands(count)]


def trained(model, config: TrainingConfig, name: str = "a", lora: LoraConfig | None = None, data=None, **options):
    report = train(model, name, samples() if data is None else data, lora=lora, config=config, **options)
    return report, model.store.load(name)


def assert_close(ours, theirs, tolerance: float):
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        np.testing.assert_allclose(tensor, theirs.tensors[name], rtol=tolerance, atol=tolerance, err_msg=name)


def differs(ours, theirs) -> bool:
    return any(not np.array_equal(tensor, theirs.tensors[name]) for name, tensor in ours.tensors.items())


def relabelled(data: list[TextSample], names: dict[str, str]) -> list[TextSample]:
    return [TextSample(s.text, names[s.label]) for s in data]


def numbered() -> list[NumberSample]:
    """How warm, by the words."""
    degrees = {"warm": (1.0,), "bright": (0.0,), "quiet": (-1.0,)}
    return [NumberSample(row["text"], degrees[row["label"]]) for row in tiny.commands()]


def tagged() -> list[TokenSample]:
    things, rows = {"room", "light", "music", "kitchen", "hall"}, []
    for row in tiny.commands():
        words = row["text"].split()
        rows.append(TokenSample(tuple(words), tuple("THING" if w in things else "O" for w in words)))
    return rows


def pairs(negative: bool = False) -> list[PairSample]:
    rows, data = tiny.commands(), []
    for i, row in enumerate(rows):
        other, far = rows[(i + 3) % len(rows)]["text"], rows[(i + 1) % len(rows)]["text"]
        data.append(PairSample(row["text"], other, far if negative else None))
    return data


class Stop(Exception):
    """As if the process died."""


def stopping_at(step: int):
    def callback(result, _progress):
        if result.step == step:
            raise Stop

    return callback
