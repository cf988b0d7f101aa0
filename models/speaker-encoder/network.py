"""The speaker encoder of generalized end-to-end loss (Wan et al. 2017, arXiv:1710.10467), its parts named as in the
package that its weights come from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

MELS, HIDDEN, LAYERS, FRAMES = 40, 256, 3, 160
WEIGHTS = "pretrained.pt"


class SpeakerEncoder(nn.Module):
    """A vector `[N, 256]` of spectra `[N, frames, 40]`; its direction tells the speaker."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, HIDDEN, LAYERS, batch_first=True)
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, mels: torch.Tensor) -> dict[str, torch.Tensor]:
        states, _ = self.lstm(mels)
        return {"embedding": torch.relu(self.linear(states[:, -1]))}


def encoder(folder: Path) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The encoder with the weights in `folder`, and spectra of the length that it was trained on."""
    network = SpeakerEncoder()
    weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)["model_state"]
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network, {"mels": torch.rand(2, FRAMES, MELS)}
