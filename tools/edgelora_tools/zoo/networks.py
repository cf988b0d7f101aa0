"""Networks for sequences, sounds, tables and points written by hand in torch, as people write their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgelora_tools.zoo.samples import ROWS, VOCABULARY, Made, build, floats, ids

_WIDTH = 32


def _tokens(module: nn.Module) -> Made:
    return module, {"tokens": ids()}, {"tokens": {0: "batch", 1: "sequence"}}


def mlp() -> Made:
    """A multilayer perceptron."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))

    return floats(build(make), 12, name="input")


def activations_mlp() -> Made:
    """A perceptron with a different activation after every layer."""

    def make() -> nn.Module:
        kinds = [nn.GELU(), nn.SiLU(), nn.ELU(), nn.SELU(), nn.LeakyReLU(), nn.PReLU(), nn.Softplus(), nn.Mish()]
        kinds += [nn.Hardswish(), nn.Hardsigmoid(), nn.CELU(), nn.Softsign(), nn.GELU(approximate="tanh"), nn.Tanh()]
        return nn.Sequential(*(part for kind in kinds for part in (nn.Linear(16, 16), kind)), nn.Linear(16, 3))

    return floats(build(make), 16, name="input")


def highway() -> Made:
    """Highway layers, arXiv:1505.00387."""

    class Highway(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.gates = (nn.ModuleList(nn.Linear(16, 16) for _ in range(3)) for _ in range(2))
            self.out = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer, gate in zip(self.layers, self.gates, strict=True):
                t = torch.sigmoid(gate(x))
                x = t * torch.relu(layer(x)) + (1 - t) * x
            return self.out(x)

    return floats(build(Highway), 16, name="x")


def lstm_tagger() -> Made:
    """Embeddings, an LSTM, a class for every token."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm = nn.Embedding(VOCABULARY, 16), nn.LSTM(16, _WIDTH, batch_first=True)
            self.project, self.out = nn.Linear(16, 16), nn.Linear(_WIDTH, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.lstm(self.project(self.embedding(tokens)))[0])

    return _tokens(build(Tagger))


def gru_classifier() -> Made:
    """Two layers of GRU, the last state classified."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.gru = nn.Linear(9, 16), nn.GRU(16, _WIDTH, num_layers=2, batch_first=True)
            self.out = nn.Linear(_WIDTH, 6)

        def forward(self, signal: Tensor) -> Tensor:
            return self.out(self.gru(torch.relu(self.project(signal)))[1][-1])

    return floats(build(Classifier), 20, 9, name="signal", dynamic={1: "steps"})


def elman_rnn() -> Made:
    """A plain recurrent network (Elman 1990)."""

    class Elman(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.rnn = nn.Linear(4, 8), nn.RNN(8, 16, batch_first=True)
            self.out = nn.Linear(16, 4)

        def forward(self, signal: Tensor) -> Tensor:
            return self.out(self.rnn(self.project(signal))[0])

    return floats(build(Elman), 12, 4, name="signal", dynamic={1: "steps"})


def speaker_encoder() -> Made:
    """Two bidirectional LSTMs, a unit vector per utterance, arXiv:1710.10467."""

    class Speaker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(20, 16)
            self.lstm = nn.LSTM(16, 16, num_layers=2, bidirectional=True, batch_first=True)
            self.out = nn.Linear(32, 16)

        def forward(self, mel: Tensor) -> Tensor:
            return F.normalize(torch.relu(self.out(self.lstm(self.project(mel))[0].mean(1))))

    return floats(build(Speaker), 24, 20, name="mel", dynamic={1: "frames"})


def gru_seq2seq() -> Made:
    """A GRU encoder and a GRU decoder with additive attention, arXiv:1409.0473."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source, self.target = nn.Embedding(VOCABULARY, 16), nn.Embedding(VOCABULARY, 16)
            self.encoder, self.decoder = (nn.GRU(16, _WIDTH, batch_first=True) for _ in range(2))
            self.query, self.key, self.energy = nn.Linear(_WIDTH, 16), nn.Linear(_WIDTH, 16), nn.Linear(16, 1)
            self.out = nn.Linear(2 * _WIDTH, VOCABULARY)

        def forward(self, tokens: Tensor, previous: Tensor) -> Tensor:
            memory, state = self.encoder(self.source(tokens))
            hidden, _ = self.decoder(self.target(previous), state)
            energy = self.energy(torch.tanh(self.query(hidden)[:, :, None] + self.key(memory)[:, None]))
            return self.out(torch.cat([hidden, energy.squeeze(-1).softmax(-1) @ memory], -1))

    inputs = {"tokens": ids(), "previous": ids(length=5)}
    return build(Translator), inputs, {"tokens": {0: "batch", 1: "sequence"}, "previous": {0: "batch", 1: "target"}}


def temporal_convolutions() -> Made:
    """TCN, dilated causal convolutions, arXiv:1803.01271."""

    class Block(nn.Module):
        def __init__(self, i: int, o: int, dilation: int) -> None:
            super().__init__()
            self.pad = 2 * dilation
            self.conv, self.skip = nn.Conv1d(i, o, 3, dilation=dilation), nn.Conv1d(i, o, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.relu(self.conv(F.pad(x, (self.pad, 0)))) + self.skip(x))

    class Tcn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(4, 16, 1), Block(16, 16, 2), Block(16, 16, 4))
            self.out = nn.Linear(16, 3)

        def forward(self, signal: Tensor) -> Tensor:
            return self.out(self.blocks(signal.transpose(1, 2))[:, :, -1])

    return floats(build(Tcn), 20, 4, name="signal", dynamic={1: "steps"})


def keyword_ds_cnn() -> Made:
    """DS-CNN for keywords, depthwise separable, arXiv:1711.07128."""

    def separable(channels: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        return [
            depthwise, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels), nn.ReLU(),
        ]  # fmt: skip

    def make() -> nn.Module:
        stem = [nn.Conv2d(1, 16, (10, 4), 2, (5, 1)), nn.BatchNorm2d(16), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12)]
        return nn.Sequential(*stem, *separable(16), *separable(16), *head)

    return floats(build(make), 1, 49, 10, name="input")


def wavenet() -> Made:
    """Gated dilated convolutions with skips, arXiv:1609.03499."""

    class Wavenet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Conv1d(1, 16, 1)
            self.gates = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**n) for n in range(3))
            self.mix, self.skip = (nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(3)) for _ in range(2))
            self.end = nn.Conv1d(16, 8, 1)

        def forward(self, wave: Tensor) -> Tensor:
            x = self.start(wave)
            skips = torch.zeros_like(x)
            for n, (gate, mix, skip) in enumerate(zip(self.gates, self.mix, self.skip, strict=True)):
                a, b = gate(F.pad(x, (2**n, 0))).chunk(2, 1)
                z = torch.tanh(a) * torch.sigmoid(b)
                skips, x = skips + skip(z), x + mix(z)
            return self.end(torch.relu(skips))

    return floats(build(Wavenet), 1, 32, name="wave", dynamic={2: "steps"})


def conv_tasnet() -> Made:
    """Conv-TasNet, masks on a learned filter bank, arXiv:1809.07454."""

    class Tasnet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Conv1d(1, 16, 8, 4)
            self.norm, self.bottleneck = nn.GroupNorm(1, 16), nn.Conv1d(16, 16, 1)
            self.depthwise, self.mask = nn.Conv1d(16, 16, 3, padding=2, dilation=2, groups=16), nn.Conv1d(16, 32, 1)
            self.decoder, self.act = nn.ConvTranspose1d(16, 1, 8, 4), nn.PReLU()

        def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
            coded = torch.relu(self.encoder(wave))
            x = self.act(self.depthwise(self.bottleneck(self.norm(coded))))
            one, two = torch.sigmoid(self.mask(x)).chunk(2, 1)
            return self.decoder(coded * one), self.decoder(coded * two)

    return floats(build(Tasnet), 1, 64, name="wave")


def text_cnn() -> Made:
    """Convolutions of several widths and a maximum over time, arXiv:1408.5882."""

    class TextCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, 16)
            self.convolutions = nn.ModuleList(nn.Conv1d(16, 8, k, padding=k - 1) for k in (2, 3, 4))
            self.out = nn.Linear(24, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens).transpose(1, 2)
            return self.out(torch.cat([torch.relu(conv(x)).amax(-1) for conv in self.convolutions], 1))

    return _tokens(build(TextCnn))


def bag_of_words() -> Made:
    """The mean of embeddings and a perceptron (fastText), arXiv:1607.01759."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, 16)
            self.hidden, self.out = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(torch.relu(self.hidden(self.embedding(tokens).mean(1))))

    return _tokens(build(Bag))


def mlp_mixer() -> Made:
    """MLP-Mixer, arXiv:2105.01601."""

    class Mixer(nn.Module):
        def __init__(self, patches: int = 16, width: int = 16) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, width, 4, 4)
            self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
            self.tokens = nn.Sequential(nn.Linear(patches, 32), nn.GELU(), nn.Linear(32, patches))
            self.channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
            self.out = nn.Linear(width, 5)

        def forward(self, image: Tensor) -> Tensor:
            x = self.patch(image).flatten(2).transpose(1, 2)
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels(self.norm2(x))
            return self.out(self.norm3(x).mean(1))

    return floats(build(Mixer), 3, 16, 16, name="image")


def gmlp() -> Made:
    """gMLP, a gate across positions, arXiv:2105.08050; sequences of one length."""

    class Gated(nn.Module):
        def __init__(self, length: int = 8) -> None:
            super().__init__()
            self.embedding, self.norm = nn.Embedding(VOCABULARY, 16), nn.LayerNorm(16)
            self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 16)
            self.gate_norm, self.across = nn.LayerNorm(16), nn.Conv1d(length, length, 1)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
            return x + self.down(u * self.across(self.gate_norm(v)))

    return build(Gated), {"tokens": ids()}, {"tokens": {0: "batch"}}


def torch_transformer() -> Made:
    """torch's own TransformerEncoderLayer, projections packed in one matrix."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(_WIDTH, 4, 64, batch_first=True)
            self.project, self.out = nn.Linear(6, _WIDTH), nn.Linear(_WIDTH, 3)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, signal: Tensor) -> Tensor:
            return self.out(self.encoder(self.project(signal)).mean(1))

    return floats(build(Encoder), 10, 6, name="signal", dynamic={1: "steps"})


def torch_encoder_decoder() -> Made:
    """torch's own Transformer with a causal mask, arXiv:1706.03762."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, _WIDTH)
            self.transformer = nn.Transformer(_WIDTH, 4, 1, 1, 64, batch_first=True, norm_first=True)
            self.out = nn.Linear(_WIDTH, VOCABULARY)

        def forward(self, tokens: Tensor, previous: Tensor) -> Tensor:
            length = previous.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool, device=previous.device).triu(1)
            made = self.transformer(self.embedding(tokens), self.embedding(previous), tgt_mask=mask, tgt_is_causal=True)
            return self.out(made)

    inputs = {"tokens": ids(), "previous": ids(length=5)}
    return build(Translator), inputs, {"tokens": {0: "batch", 1: "sequence"}, "previous": {0: "batch", 1: "target"}}


def latent_attention() -> Made:
    """A fixed set of latents reads a long input, as Perceiver does, arXiv:2103.03206."""

    class Latents(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latents = nn.Parameter(torch.randn(4, 16))
            self.query, self.key, self.value, self.mix = (nn.Linear(16, 16) for _ in range(4))
            self.project, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, points: Tensor) -> Tensor:
            x = self.project(points)
            z = self.latents.expand(points.shape[0], -1, -1)
            attended = F.scaled_dot_product_attention(self.query(z), self.key(x), self.value(x))
            return self.out((z + F.gelu(self.mix(attended))).mean(1))

    return floats(build(Latents), 12, 6, name="points", dynamic={1: "count"})


def variational_autoencoder() -> Made:
    """VAE with the noise as an input, arXiv:1312.6114."""

    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.mean, self.spread = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 4)
            self.decode = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 16))

        def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.encode(x))
            mean, log_variance = self.mean(h), self.spread(h)
            divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1)
            return self.decode(mean + noise * torch.exp(0.5 * log_variance)), divergence

    module, inputs, axes = floats(build(Vae), 16, name="x")
    noise = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(3))
    return module, inputs | {"noise": noise}, axes | {"noise": {0: "batch"}}


def point_net() -> Made:
    """PointNet, a shared perceptron, a transform and a maximum over points, arXiv:1612.00593."""

    class PointNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 9))
            self.points = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU())
            self.out = nn.Linear(32, 4)

        def forward(self, cloud: Tensor) -> Tensor:
            turn = self.transform(cloud).amax(1).view(-1, 3, 3) + torch.eye(3)
            return self.out(self.points(cloud @ turn).amax(1))

    return floats(build(PointNet), 24, 3, name="cloud", dynamic={1: "points"})


def graph_convolution() -> Made:
    """Two graph convolutions on a dense adjacency, arXiv:1609.02907."""

    class Gcn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, nodes: Tensor, weights: Tensor) -> Tensor:
            spread = weights.exp()
            spread = spread / spread.sum(-1, keepdim=True)
            return spread @ self.second(torch.relu(spread @ self.first(nodes)))

    module, inputs, axes = floats(build(Gcn), 7, 6, name="nodes")
    weights = torch.randn(ROWS, 7, 7, generator=torch.Generator().manual_seed(3))
    return module, inputs | {"weights": weights}, axes | {"weights": {0: "batch"}}


def tab_transformer() -> Made:
    """TabTransformer, attention among categories, numbers beside it, arXiv:2012.06678."""

    class Tabular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm = nn.Embedding(VOCABULARY, 16), nn.LayerNorm(16)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.numbers, self.hidden, self.out = nn.LayerNorm(4), nn.Linear(8 * 16 + 4, 32), nn.Linear(32, 2)

        def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
            x = self.embedding(categories)
            x = self.norm(x + self.attention(x, x, x, need_weights=False)[0]).flatten(1)
            return self.out(F.selu(self.hidden(torch.cat([x, self.numbers(numbers)], 1))))

    numbers = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(3))
    inputs = {"categories": ids(), "numbers": numbers}
    return build(Tabular), inputs, {name: {0: "batch"} for name in inputs}


def wide_and_deep() -> Made:
    """Embeddings of a person and a thing, a product and a deep part, arXiv:1606.07792."""

    class Recommender(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.people, self.things = nn.Embedding(VOCABULARY, 8), nn.Embedding(VOCABULARY, 8)
            self.deep = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
            self.out = nn.Linear(16, 1)

        def forward(self, person: Tensor, thing: Tensor) -> Tensor:
            a, b = self.people(person), self.things(thing)
            return torch.sigmoid(self.out(torch.cat([a * b, self.deep(torch.cat([a, b], -1))], -1))).squeeze(-1)

    inputs = {"person": ids(ROWS, 1).squeeze(1), "thing": ids(ROWS, 2)[:, 1]}
    return build(Recommender), inputs, {name: {0: "batch"} for name in inputs}


def mixture_density() -> Made:
    """Weights, means and deviations of a mixture (Bishop 1994)."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(6, 16)
            self.weights, self.means, self.deviations = (nn.Linear(16, 3) for _ in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h = torch.tanh(self.hidden(x))
            return self.weights(h).log_softmax(-1), self.means(h), F.softplus(self.deviations(h)) + 1e-3

    return floats(build(Mixture), 6, name="x")


def actor_critic() -> Made:
    """A policy and a value from one body, arXiv:1602.01783."""

    class ActorCritic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
            self.policy, self.value = nn.Linear(32, 4), nn.Linear(32, 1)

        def forward(self, state: Tensor) -> dict[str, Tensor]:
            h = self.body(state)
            return {"policy": self.policy(h).softmax(-1), "value": self.value(h)}

    return floats(build(ActorCritic), 8, name="state")


def neural_ode() -> Made:
    """A vector field integrated by four Runge–Kutta steps, one layer called sixteen times, arXiv:1806.07366."""

    class Ode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 4)

        def field(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

        def forward(self, x: Tensor) -> Tensor:
            h = 0.25
            for _ in range(4):
                a = self.field(x)
                b = self.field(x + h / 2 * a)
                c = self.field(x + h / 2 * b)
                x = x + h / 6 * (a + 2 * b + 2 * c + self.field(x + h * c))
            return x

    return floats(build(Ode), 4, name="x")


def x_vector() -> Made:
    """Statistics over time (x-vectors), mean and deviation pooled (Snyder et al. 2018)."""

    class Xvector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frames = nn.Sequential(nn.Conv1d(6, 16, 5), nn.ReLU(), nn.Conv1d(16, 16, 3, dilation=2), nn.ReLU())
            self.embed, self.out = nn.Linear(32, 16), nn.Linear(16, 4)

        def forward(self, signal: Tensor) -> Tensor:
            x = self.frames(signal)
            pooled = torch.cat([x.mean(-1), (x.var(-1) + 1e-5).sqrt()], 1)
            return self.out(torch.relu(self.embed(pooled)))

    return floats(build(Xvector), 6, 30, name="signal")
