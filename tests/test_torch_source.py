"""A torch module as a source: the module is left as it was, and `run` is the module's own inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgelora_tools.sources.torch_export import EXPORTERS, module_source


class Dropping(torch.nn.Module):
    """A module whose training mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(self.linear(x), 0.5, self.training)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_source_runs_without_dropout_after_the_export(exporter: str):
    module = Dropping()
    x = torch.ones(2, 8)
    source = module_source(module, {"x": x}, "dropping", exporter)
    assert not module.training
    (ran,) = source.run({"x": x.numpy()}).values()
    np.testing.assert_allclose(ran, module.linear(x).detach().numpy(), rtol=1e-6)
