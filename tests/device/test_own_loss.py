"""A loss of the caller's own: the same adapter as the compiled loss gives, and errors that name the fault."""

from __future__ import annotations

import numpy as np
import pytest

from edgelora.adapter import new_adapter
from edgelora.config import LoraConfig
from edgelora.data import NumberSample
from edgelora.errors import ConfigError
from edgelora.objectives import OwnLoss, Regression
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig

WORDS = ("alpha beta", "gamma", "delta epsilon zeta", "beta beta", "eta alpha", "gamma theta")
ROWS = np.arange(len(WORDS))


def samples():
    return [NumberSample(text, (0.3 * i - 0.7,)) for i, text in enumerate(WORDS)]


def squares(model, config: TrainingConfig) -> Regression:
    objective = objective_for(model, samples(), None, config)
    assert isinstance(objective, Regression)
    return objective


def trained(open_model, own, steps=4, **settings):
    model = open_model("regression")
    config = TrainingConfig(learning_rate=1e-2, optim="sgd", **settings)  # AdamW would magnify rounding
    adapter = new_adapter(model.bundle.manifest, LoraConfig(r=4, lora_alpha=8), outputs=1)
    compiled = squares(model, config)
    targets = np.asarray([s.target for s in samples()], np.float32)

    def squared_error(outputs, rows):
        gap = outputs["logits"] - targets[rows]
        return float((gap**2).sum()), {"logits": 2 * gap}

    objective = OwnLoss(compiled.data, squared_error) if own else compiled
    trainer = Trainer(model.bundle, adapter, objective, config)
    losses = [trainer.step(ROWS).loss for _ in range(steps)]
    return losses, trainer.current()


@pytest.mark.parametrize("micro", [None, 4])
def test_own_loss_trains_as_the_compiled_loss_does(open_model, micro):
    compiled_losses, compiled = trained(open_model, own=False)
    own_losses, own = trained(open_model, own=True, micro_batch_size=micro)
    assert compiled_losses[-1] < compiled_losses[0]
    np.testing.assert_allclose(own_losses, compiled_losses, rtol=1e-5)
    for name, tensor in compiled.tensors.items():
        np.testing.assert_allclose(own.tensors[name], tensor, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_gradient_of_another_shape_is_refused(open_model):
    model = open_model("regression")
    adapter = new_adapter(model.bundle.manifest, LoraConfig(), outputs=1)
    data = squares(model, TrainingConfig()).data
    wrong = OwnLoss(data, lambda outputs, rows: (0.0, {"logits": np.zeros(3)}))
    with pytest.raises(ConfigError, match=r"logits.*shape"):
        Trainer(model.bundle, adapter, wrong, TrainingConfig()).step(ROWS)


def test_dropout_is_refused(open_model):
    model = open_model("regression")
    adapter = new_adapter(model.bundle.manifest, LoraConfig(lora_dropout=0.1), outputs=1)
    data = squares(model, TrainingConfig()).data
    with pytest.raises(ConfigError, match="dropout"):
        Trainer(model.bundle, adapter, OwnLoss(data, lambda o, r: (0.0, {})), TrainingConfig())
