"""The graphs of a language model against its inference graph: a prompt, then token by token, and what tokens cost."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.active import ActiveAdapter
from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.gradient_checks import rounds_activations
from edgelora.graph_checks import MIXED_TOLERANCE, GraphVerdict, method_adapter
from edgelora.manifest import GraphSet, LanguageModel
from edgelora.mixing import AdapterStack
from edgelora.probes import Feeds, whole_adapter
from edgelora.slopes import LARGEST, ROUNDED_TOLERANCE, bounded

_MEMORY = 1 << 28
_PROMPT = 0.5  # of the tokens; the others come one at a time


def check_decode(
    bundle: Bundle, language: LanguageModel, inputs: Feeds, rng: np.random.Generator
) -> list[GraphVerdict]:
    """`decode`, the same with an adapter a row, and `score`, under a random adapter at every point; then those of
    other methods.

    Of the inputs' tokens `[batch, sequence]` all are read, whatever their mask says.
    """
    ids = inputs["input_ids"]
    whole = tokens_of(ids, 0, ids.shape[1])
    adapter = whole_adapter(bundle, inputs, rng)
    wanted = bundle.forward.run({**whole, **adapter})["logits"]
    verdicts = [
        _verdict(bundle, language.decode, decoded_logits(bundle, language, language.decode, ids, adapter), wanted)
    ]
    verdicts.append(_scored(bundle, language, language.score, ids, adapter, wanted, rng))
    for name, found in bundle.manifest.methods.items():
        verdicts += _check_set(bundle, language, name, found, ids, rng)
    if language.decode_mixed is not None:
        absent: Feeds = {**absent_adapter(bundle.manifest)}
        adapters: dict[Hashable, ActiveAdapter] = {
            number: ActiveAdapter(feeds, None, False) for number, feeds in enumerate((absent, adapter))
        }
        rows = np.arange(len(ids)) % 2
        off = bundle.forward.run({**whole, **absent})["logits"]
        off[rows == 1] = wanted[rows == 1]
        with AdapterStack(bundle.manifest, _MEMORY).loaded(rows.tolist(), adapters) as stacked:
            made = None if stacked is None else decoded_logits(bundle, language, language.decode_mixed, ids, stacked)
        verdicts.append(_verdict(bundle, language.decode_mixed, made, off))
    return verdicts


def _check_set(
    bundle: Bundle, language: LanguageModel, name: str, found: GraphSet, ids: NDArray[Any], rng: np.random.Generator
) -> list[GraphVerdict]:
    """The graphs of another method, under a random adapter at every place."""
    adapter = method_adapter(bundle, name, absent_adapter(bundle.manifest, name, bundle), rng)
    wanted = bundle.forward_in(name).run({**tokens_of(ids, 0, ids.shape[1]), **adapter})["logits"]
    verdicts: list[GraphVerdict] = []
    if found.decode is not None and found.before is None:
        made = decoded_logits(bundle, language, found.decode, ids, adapter)
        verdicts.append(_verdict(bundle, found.decode, made, wanted))
    if found.decode is not None and found.before is not None:
        before: Feeds = bundle.graph(found.before).run(adapter)
        made = decoded_logits(bundle, language, found.decode, ids, absent_adapter(bundle.manifest), before)
        verdicts.append(_verdict(bundle, found.before, made, wanted))
    if found.score is not None:
        verdicts.append(_scored(bundle, language, found.score, ids, adapter, wanted, rng))
    return verdicts


def _scored(
    bundle: Bundle,
    language: LanguageModel,
    file: str,
    ids: NDArray[Any],
    adapter: Feeds,
    logits: NDArray[Any],
    rng: np.random.Generator,
) -> GraphVerdict:
    """A graph of what tokens cost against the logits, for random labels."""
    labels = rng.integers(0, language.vocabulary, ids.shape)
    z = logits.astype(np.float64)
    z -= z.max(-1, keepdims=True)
    nll = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, labels[..., None], -1)[..., 0]
    got = bundle.graph(file).run({**tokens_of(ids, 0, ids.shape[1]), **adapter, "labels": labels})["nll"]
    return _verdict(bundle, file, got, nll)


def decoded_logits(
    bundle: Bundle,
    language: LanguageModel,
    file: str,
    ids: NDArray[Any],
    adapter: Mapping[str, NDArray[Any]],
    before: Feeds | None = None,
) -> NDArray[Any] | None:
    """Logits `[batch, sequence, vocabulary]`: a prompt, run once for each of its tokens; then the rest, one by one.

    `before` stands before the tokens of every row. None where a graph does not return the keys and values that the
    manifest tells of.
    """
    batch, length = ids.shape
    names = [f"{i}.{part}" for i in range(language.layers) for part in ("key", "value")]
    empty = np.zeros((1, language.kv_heads, 0, language.head_size), np.float32)
    kept = dict.fromkeys([f"present.{name}" for name in names], empty) if before is None else before
    graph, begun = bundle.graph(file), max(1, int(length * _PROMPT))
    if not {f"present.{name}" for name in names} <= set(graph.outputs) & set(kept):
        return None
    past: Feeds = {f"past_key_values.{name}": np.repeat(kept[f"present.{name}"], batch, 0) for name in names}
    virtual = kept[f"present.{names[0]}"].shape[2]
    logits: list[NDArray[Any]] = []
    for at in range(length):
        start, stop = (0, begun) if at < begun else (at, at + 1)
        last = np.full(batch, at - start, np.int64)
        made = graph.run({**tokens_of(ids, start, stop, virtual), **past, **adapter, "last": last})
        logits.append(made["logits"])
        if stop == at + 1:
            past = {f"past_key_values.{name}": made[f"present.{name}"] for name in names}
    return np.stack(logits, 1)


def tokens_of(ids: NDArray[Any], start: int, stop: int, virtual: int = 0) -> Feeds:
    """The tokens from `start` to `stop` as graph inputs, one segment with those before, the `virtual` ones first."""
    positions = np.broadcast_to(virtual + np.arange(start, stop), (len(ids), stop - start))
    return {
        "input_ids": np.ascontiguousarray(ids[:, start:stop]),
        "attention_mask": np.ones((len(ids), virtual + stop), np.int64),
        "position_ids": np.ascontiguousarray(positions),
    }


def _verdict(bundle: Bundle, file: str, got: NDArray[Any] | None, wanted: NDArray[Any]) -> GraphVerdict:
    tolerance = ROUNDED_TOLERANCE if rounds_activations(bundle) else MIXED_TOLERANCE
    if got is None or got.shape != wanted.shape:
        return GraphVerdict(file, LARGEST, tolerance, "shape", False)
    gap = np.abs(got.astype(np.float64) - wanted).max() / max(float(np.abs(wanted).max()), 1e-6)
    return GraphVerdict(file, bounded(float(gap)), tolerance, "output", float(gap) <= tolerance)
