"""What people also write: states that are given, lengths, losses as outputs, routing, fields of numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgelora_tools.zoo.samples import ROWS, SMALL, TEXT, VOCABULARY, Made, build, floats, hf, ids


def _noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bert_with_its_loss() -> Made:
    """A masked language model that is given labels: its loss is an output without axes."""
    module = build(hf.BertForMaskedLM, hf.BertConfig(**SMALL, **TEXT))
    inputs = {"input_ids": ids(), "labels": ids()}
    return module, inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


def image_captions() -> Made:
    """A ViT read by GPT-2, caches left on as people leave them (vision encoder–decoder)."""
    vit = hf.ViTConfig(**SMALL, image_size=32, patch_size=8)
    gpt = hf.GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, gpt)
    inputs = {"pixel_values": _noise(ROWS, 3, 32, 32), "decoder_input_ids": ids()}
    axes = {"pixel_values": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "sequence"}}
    return build(lambda: hf.VisionEncoderDecoderModel(config)), inputs, axes


def time_series_transformer() -> Made:
    """A transformer of lagged values with known features of the time (Hugging Face 2022)."""
    config = hf.TimeSeriesTransformerConfig(
        prediction_length=4, context_length=8, lags_sequence=[1, 2], num_time_features=2, d_model=16, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
    )  # fmt: skip
    inputs = {
        "past_values": _noise(ROWS, 10),
        "past_time_features": _noise(ROWS, 10, 2, seed=4),
        "past_observed_mask": torch.ones(ROWS, 10),
        "future_values": _noise(ROWS, 4, seed=5),
        "future_time_features": _noise(ROWS, 4, 2, seed=6),
    }
    return build(hf.TimeSeriesTransformerModel, config), inputs, {name: {0: "batch"} for name in inputs}


def packed_lstm() -> Made:
    """Sequences of several lengths, packed for a bidirectional LSTM."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.project = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16)
            self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
            self.out = nn.Linear(32, 4)

        def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            x = self.project(self.embedding(tokens))
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            states, (hidden, _) = self.lstm(packed)
            states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
            return self.out(torch.cat([hidden[-2], hidden[-1]], -1)), states

    inputs = {"tokens": ids(), "lengths": torch.tensor([8, 5])}
    return build(Packed), inputs, {"tokens": {0: "batch", 1: "sequence"}, "lengths": {0: "batch"}}


def streaming_lstm() -> Made:
    """An LSTM that is given its state and returns the next one, outputs in a nested dict."""

    class Streaming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.lstm = nn.Linear(6, 12), nn.LSTM(12, 16, 2, batch_first=True)
            self.out = nn.Linear(16, 4)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Any]:
            y, state = self.lstm(self.project(x), (h, c))
            return {"y": self.out(y), "state": state}

    inputs = {"x": _noise(ROWS, 9, 6), "h": _noise(2, ROWS, 16), "c": _noise(2, ROWS, 16, seed=5)}
    return build(Streaming), inputs, {"x": {0: "batch", 1: "steps"}, "h": {1: "batch"}, "c": {1: "batch"}}


def mixture_of_experts() -> Made:
    """Each token goes to two experts of four, its share added back by index."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.gate, self.out = nn.Linear(16, 16), nn.Linear(16, 4, bias=False), nn.Linear(16, 3)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)) for _ in range(4)
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            tokens = self.project(x).reshape(-1, 16)
            weights, chosen = self.gate(tokens).softmax(-1).topk(2, -1)
            y = torch.zeros_like(tokens)
            for n, expert in enumerate(self.experts):
                row, rank = torch.where(chosen == n)
                y = y.index_add(0, row, expert(tokens[row]) * weights[row, rank, None])
            return self.out(tokens + y).view(x.shape[0], -1, 3), chosen

    return floats(build(Experts), 5, 16, name="x", dynamic={1: "count"})


def message_passing() -> Made:
    """Messages along given edges, their sum and maximum at every node, arXiv:1704.01212."""

    class Messages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.message, self.update, self.out = nn.Linear(12, 16), nn.Linear(22, 16), nn.Linear(16, 3)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            source, target = edges[0], edges[1]
            m = torch.relu(self.message(torch.cat([nodes[source], nodes[target]], -1)))
            zeros = torch.zeros(nodes.shape[0], 16)
            most = zeros.scatter_reduce(0, target[:, None].expand(-1, 16), m, "amax")
            h = torch.tanh(self.update(torch.cat([nodes, zeros.index_add(0, target, m)], -1)))
            return self.out(h + most).mean(0)

    inputs = {"nodes": _noise(7, 6), "edges": torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])}
    return build(Messages), inputs, {"nodes": {}, "edges": {1: "count"}}


def diffusion_unet() -> Made:
    """A small U-Net that is told the time of the noise, attention at the bottom, arXiv:2006.11239."""

    class Unet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 32))
            self.start, self.down = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
            self.norm, self.middle = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)
            self.qkv, self.mix = nn.Conv1d(16, 48, 1), nn.Conv1d(16, 16, 1)
            self.up, self.end = nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            angles = time.float()[:, None] * torch.exp(torch.arange(4) * (-math.log(10000) / 3))
            scale, shift = self.time(torch.cat([angles.sin(), angles.cos()], -1))[..., None, None].chunk(2, 1)
            first = self.start(x)
            h = self.norm(self.middle(F.silu(self.down(F.silu(first))))) * (1 + scale) + shift
            z = h.flatten(2)
            q, k, v = self.qkv(z).chunk(3, 1)
            shares = (torch.einsum("bci,bcj->bij", q, k) / 4).softmax(-1)
            h = (z + self.mix(torch.einsum("bij,bcj->bci", shares, v))).view_as(h)
            return self.end(F.silu(self.up(torch.cat([F.interpolate(h, scale_factor=2.0), first], 1))))

    inputs = {"x": _noise(ROWS, 1, 8, 8), "time": torch.tensor([3, 500])}
    return build(Unet), inputs, {name: {0: "batch"} for name in inputs}


def radiance_field() -> Made:
    """NeRF: waves of the place, a network, and light summed along a ray, arXiv:2003.08934."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(27, 32), nn.Linear(32 + 27, 32)
            self.density, self.colour = nn.Linear(32, 1), nn.Linear(32, 3)

        def forward(self, points: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
            waves = [f(points * 2.0**n * math.pi) for n in range(4) for f in (torch.sin, torch.cos)]
            x = torch.cat([points, *waves], -1)
            h = torch.relu(self.second(torch.cat([torch.relu(self.first(x)), x], -1)))
            step = torch.cat([depth[:, 1:] - depth[:, :-1], torch.full_like(depth[:, :1], 1e3)], -1)
            thickness = F.softplus(self.density(h)).squeeze(-1) * step
            weight = (1 - torch.exp(-thickness)) * torch.exp(thickness - thickness.cumsum(-1))
            return (weight[..., None] * torch.sigmoid(self.colour(h))).sum(1), (weight * depth).sum(1)

    inputs = {"points": _noise(ROWS, 8, 3), "depth": torch.linspace(1, 2, 8).repeat(ROWS, 1)}
    return build(Field), inputs, {name: {0: "rays"} for name in inputs}


def long_convolution() -> Made:
    """A filter as long as the sequence, applied through the Fourier transform (Hyena), arXiv:2302.10866."""

    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.out = nn.Linear(6, 8), nn.Linear(8, 4)
            self.filter = nn.Parameter(_noise(8, 16) / 4)

        def forward(self, x: Tensor) -> Tensor:
            u = self.project(x).transpose(1, 2)
            y = torch.fft.irfft(torch.fft.rfft(u, 32) * torch.fft.rfft(self.filter, 32), 32)[..., :16]
            return self.out(F.gelu(y).transpose(1, 2))

    return floats(build(Long), 16, 6, name="x")


def hifi_gan() -> Made:
    """HiFi-GAN's generator, weights normalized, arXiv:2010.05646."""

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = nn.utils.parametrizations.weight_norm
            self.start, self.end = norm(nn.Conv1d(10, 16, 7, padding=3)), norm(nn.Conv1d(4, 1, 7, padding=3))
            self.up = nn.ModuleList(norm(nn.ConvTranspose1d(c, c // 2, 8, 4, 2)) for c in (16, 8))
            self.blocks = nn.ModuleList(
                nn.ModuleList(norm(nn.Conv1d(c, c, 3, dilation=d, padding=d)) for d in (1, 3)) for c in (8, 4)
            )

        def forward(self, mel: Tensor) -> Tensor:
            x = self.start(mel)
            for up, block in zip(self.up, self.blocks, strict=True):
                x = up(F.leaky_relu(x, 0.1))
                assert isinstance(block, nn.ModuleList)
                for convolution in block:
                    x = x + convolution(F.leaky_relu(x, 0.1))
            return torch.tanh(self.end(F.leaky_relu(x))).squeeze(1)

    return floats(build(Generator), 10, 8, name="mel", dynamic={2: "frames"})


def conditional_random_field() -> Made:
    """A tagger's scores and the normalizer of its chain, arXiv:1508.01991; sequences of one length."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm = nn.Embedding(VOCABULARY, 8), nn.LSTM(8, 8, bidirectional=True, batch_first=True)
            self.out, self.steps = nn.Linear(16, 5), nn.Parameter(_noise(5, 5))

        def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.out(self.lstm(self.embedding(tokens))[0])
            total = scores[:, 0]
            for n in range(1, tokens.shape[1]):
                total = torch.logsumexp(total[..., None] + self.steps, 1) + scores[:, n]
            return scores, total.logsumexp(1)

    return build(Chain), {"tokens": ids()}, {"tokens": {0: "batch"}}
