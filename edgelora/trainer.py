"""Train an adapter in memory: one step, one evaluation. Persistence is training_run.py's.

The adapter's tensors are views of one flat array, and so are the gradients: clipping and the optimizer
are a few numpy operations whatever the number of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter, absent_adapter, head_names
from edgelora.at_once import sum_at_once
from edgelora.batching import epoch_batches, shares
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.dropout import masks_of_feeds
from edgelora.errors import ConfigError, TrainingError
from edgelora.flat import flatten, views_of
from edgelora.manifest import BIAS_OP, Halves, TrainingGraph
from edgelora.measuring import evaluate
from edgelora.methods.lora_fa import project
from edgelora.objectives import Feeds, Floats, HostLoss, Objective, is_augmented
from edgelora.optimizers import SGD, AdamW, Optimizer, clip_by_global_norm
from edgelora.pieces import most_samples, piece_count
from edgelora.prefix_cache import CacheSettings, PrefixCache, chosen_prefix
from edgelora.reference_losses import REFERENCES, weighted_sum
from edgelora.schedules import learning_rate_factor
from edgelora.session import Graph, values_of
from edgelora.summed_gradients import Part, SummedGradients
from edgelora.training_checks import (
    check_dropout,
    check_method,
    check_points,
    check_prefix,
    check_targets,
    check_zeroth_order,
)
from edgelora.training_config import TrainingConfig
from edgelora.zeroth_order import spsa

_FAST = "fast"  # the group of tensors that LoRA+ gives another learning rate
_AFTER_DROPOUT = ".lora_B"  # the input that is multiplied by 1/(1 − p) where masks drop an adapter's inputs


@dataclass(frozen=True)
class StepResult:
    """What one optimizer update did: mean loss of the batch, gradient norm before clipping, learning rate.

    `step` counts from 1 to `total_steps`, fewer if the run stops early. The loss is that before the update.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    total_steps: int


class Trainer:
    """The state of training: parameters, optimizer, step. Deterministic in (seed, data, settings).

    Raises:
        AdapterError: the adapter does not fit the bundle.
        ConfigError: no samples, no training graph for the loss, or one that does not reach an adapted point; cache
            "disk" without a folder for it.
        DataError: a regression with another number of targets than the adapter's head.
    """

    def __init__(
        self,
        bundle: Bundle,
        adapter: Adapter,
        objective: Objective,
        config: TrainingConfig,
        cache_folder: Path | None = None,
    ) -> None:
        manifest = bundle.manifest
        adapter.validate(manifest)
        if not len(objective):
            raise ConfigError("there are no training samples")
        check_targets(manifest, adapter, objective)
        self.bundle, self.adapter, self.objective, self.config = bundle, adapter, objective, config
        dropout, self._points = adapter.config.dropout, adapter.joined(manifest)
        check_dropout(adapter, objective)
        check_method(adapter, config, self._points)
        trained = trained_tensors(adapter, config)
        self.names = tuple(sorted(trained, key=lambda name: (self._is_fast(name), name)))
        self._fixed = {name: tensor for name, tensor in adapter.tensors.items() if name not in self.names}
        self.augmented = is_augmented(objective)
        keeps = config.cache is not None and not dropout and not self.augmented
        self.prefix = chosen_prefix(manifest, config.train_last, keeps)
        self._cache_folder = cache_folder
        self._caches: list[PrefixCache] = []
        self._enter(0)
        self._graphs = adapter.method.graphs
        self._judge = objective.judge(manifest, self._graphs)
        if self.prefix is not None:
            check_prefix(adapter, self.prefix, config, cache_folder)
        self.record: TrainingGraph | None = None
        if config.gradient == "spsa":
            check_zeroth_order(adapter, objective)
        else:
            self.record = bundle.training(objective.loss, dropout > 0, self.prefix, self._graphs)
            check_points(manifest, self.record, self._points)
        self.flat, self._views = flatten([adapter.tensors[n] for n in self.names])
        self._fed: dict[str, Floats] = {}
        self._fed = self._graph_inputs()
        self._absent = absent_adapter(manifest, self._graphs, bundle, beside=self._fed)
        trained_shapes = {name: view.shape for name, view in zip(self.names, self._views, strict=True)}
        fed_shapes = {name: x.shape for name, x in self._fed.items()}
        # Where what is fed is what is trained, in the same shapes, one array holds the gradients of both.
        shapes = trained_shapes if fed_shapes == trained_shapes else fed_shapes
        self._of_inputs = SummedGradients(shapes, frozenset({**self._absent, **self._fed}), loss=self._host is None)
        if shapes is trained_shapes:
            self._grad, self._grad_views = self._of_inputs.sum, list(self._of_inputs.views.values())
        else:
            self._grad = np.zeros_like(self.flat)
            self._grad_views = views_of(self._grad, list(trained_shapes.values()))
        fast = sum(adapter.tensors[name].size for name in self.names if self._is_fast(name))
        self.groups = {"adapter": slice(0, self.flat.size - fast), _FAST: slice(self.flat.size - fast, None)}
        if not fast:
            del self.groups[_FAST]
        factors = {_FAST: config.loraplus_lr_ratio or 1.0}
        self.optimizer: Optimizer = (
            AdamW(weight_decay=config.weight_decay, factors=factors)
            if config.optim == "adamw"
            else SGD(momentum=config.momentum, weight_decay=config.weight_decay, factors=factors)
        )
        self.step_number = 0
        self._pool = ThreadPoolExecutor(max(1, bundle.settings.cores - 1), "edgelora-train")  # beside this thread
        self._lengths = objective.lengths()
        self._most = self._most_samples()
        steps = self.steps_per_epoch * config.num_train_epochs
        self.total_steps = steps if config.max_steps is None else min(steps, config.max_steps)

    @property
    def forward_file(self) -> str:
        """The graph that the objective is judged by: its own if it has one, else the inference graph for adapters of
        this one's method, or what of it comes after the prefix.
        """
        if self._judge.file is not None:
            return self._judge.file
        if self.prefix is not None:
            return self.prefix.forward
        found = self.bundle.manifest.graph_set(self._graphs)
        assert found is not None, "the adapter is valid"
        return found.forward

    @property
    def part_size(self) -> int:
        """The most samples that a graph is given at once."""
        return self.config.micro_batch_size or self.config.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.objective) // self.config.batch_size)

    @property
    def _workers(self) -> int:
        """How many parts of a batch are computed at once, on a core each.

        A core that has samples of its own waits for no other at every operator. Where the batch has too few samples
        for that, or its parts depend on each other, the cores share each operator instead.
        """
        return self._workers_on(min(self.config.batch_size, self.part_size, len(self.objective)))

    def _workers_on(self, samples: int) -> int:
        cores = self.bundle.settings.cores
        return cores if self.objective.separable and samples >= 2 * cores else 1

    def pieces(self, samples: int) -> tuple[int, int]:
        """How many pieces a part of so many samples is cut into, and how many of them run at once."""
        workers = self._workers_on(samples)
        return piece_count(samples, self._most, workers), workers

    def _most_samples(self) -> int:
        """How many samples the training graph is given at once: see pieces.py."""
        if self.record is None or not self.objective.separable:
            return len(self.objective)
        feeds = self.objective.inputs(np.zeros(1, np.int64))
        sizes = {
            str(d): n
            for spec in self.bundle.manifest.inputs
            for d, n in zip(spec.shape, feeds[spec.name].shape, strict=True)
        }
        return int(min(most_samples(self.bundle.manifest, self.record.file, sizes), len(self.objective)))

    def _is_fast(self, name: str) -> bool:
        """Whether a tensor has LoRA+'s other learning rate."""
        is_other = name.endswith(".lora_B") or self.adapter.tensors[name].ndim == 1
        return self.config.loraplus_lr_ratio is not None and is_other

    def cache_of(self, objective: Objective) -> PrefixCache | None:
        """What is kept of these samples after the prefix; None where all layers are trained."""
        if self.prefix is None:
            return None
        found = next((c for c in self._caches if c.objective is objective), None)
        if found is None:
            config, settings = self.config, None
            if config.cache is not None:
                used = sum(c.size for c in self._caches)
                limit = None if config.cache_limit is None else max(config.cache_limit - used, 0)
                folder = self._cache_folder if config.cache == "disk" else None
                settings = CacheSettings(config.cache_dtype, limit, folder)
            found = PrefixCache(self.bundle, self.prefix, objective, settings, self.bundle.feeds(self.adapter))
            self._caches.append(found)
        return found

    def _training_cache(self) -> PrefixCache | None:
        """That of the training samples, which keeps nothing where they are others in each epoch."""
        if self.prefix is None or not self.augmented:
            return self.cache_of(self.objective)
        return PrefixCache(self.bundle, self.prefix, self.objective, None, {})

    def close(self) -> None:
        """Let go of what is kept after the prefix, and of the weights' pages."""
        for cache in self._caches:
            cache.close()
        self._caches.clear()
        self.bundle.give_back_pages()

    def step(self, rows: NDArray[np.int64]) -> StepResult:
        """One update from the samples of these numbers, `[batch]`.

        Raises:
            TrainingError: the loss or a gradient is not finite; the parameters are left as they were.
        """
        loss = self.accumulate(rows)
        norm = clip_by_global_norm({"adapter": self._grad}, self.config.max_grad_norm or float("inf"))
        if not np.isfinite(loss) or not np.isfinite(norm):
            raise TrainingError(
                f"the loss diverged at step {self.step_number + 1} (loss {loss:g}, gradient norm {norm:g}); "
                "lower the learning rate, or look for extreme values in the data"
            )
        rate = self.learning_rate()
        parameters = {name: self.flat[part] for name, part in self.groups.items()}
        self.optimizer.step(parameters, {name: self._grad[part] for name, part in self.groups.items()}, rate)
        self.step_number += 1
        return StepResult(self.step_number, loss, norm, rate, self.total_steps)

    def _enter(self, epoch: int) -> None:
        """Learn from what the objective is in this epoch, by the host's loss if it has one."""
        self._epoch, self._of_epoch = epoch, self.objective.of_epoch(epoch)
        self._host = self._of_epoch if isinstance(self._of_epoch, HostLoss) else None

    def accumulate(self, rows: NDArray[np.int64]) -> float:
        """Mean loss of the batch; its gradients, with respect to what is trained, are left in `gradients()`."""
        epoch, _ = self.epoch_of_step(self.step_number)
        if epoch != self._epoch:
            self._enter(epoch)
        total, parts = self._of_epoch.weight(rows), self.micro_batches(rows)
        if self.record is None:
            rng = np.random.default_rng([self.config.seed, self.step_number])
            directions, epsilon = self.config.spsa_directions, self.config.spsa_epsilon
            return spsa(lambda: self._forward_loss(parts, total), self.flat, self._grad, rng, directions, epsilon)
        return self._accumulate_backward(self.record, parts, total)

    def _accumulate_backward(self, record: TrainingGraph, parts: list[NDArray[np.int64]], total: float) -> float:
        """The exact gradient, by the training graph; returns the loss."""
        adapter, graphs = self._adapter_feeds(), self.graphs(record)
        loss, awake, at_hand = 0.0, self.bundle.settings.spinning is not False, self._at_hand(graphs)

        def made_of(rows: NDArray[np.int64]) -> Feeds:
            if at_hand is None:
                return self._feeds(adapter, rows, total, graphs)
            return self._of_epoch.loss_inputs(rows, total) | adapter

        def run(feeds: Feeds, rows: NDArray[np.int64], into: Part) -> float:
            if at_hand is not None:
                feeds = feeds | at_hand.values(rows)
            return self._backward(record, graphs, feeds | self._masks(record, feeds, rows), rows, total, into)

        for part, members in enumerate(parts):
            pieces = shares(members, self._lengths, piece_count(len(members), self._most, self._workers))
            made = self._of_inputs.room(len(pieces), beside_the_sum=part > 0)
            work = zip(map(made_of, pieces), pieces, made, strict=True)
            loss += sum_at_once(run, work, self._pool, self._workers - 1, awake)
            for graph in graphs:
                graph.rest()
            self._of_inputs.add(made)
        self._pull_back()
        return loss

    def _pull_back(self) -> None:
        """From the gradients of the graph's inputs to those of the tensors that are trained."""
        config, head = self.adapter.config, head_names(self.bundle.manifest)
        found = dict(self._of_inputs.views)
        for name, grad in found.items():
            if name.endswith(_AFTER_DROPOUT) and config.dropout:
                grad /= np.float32(1.0 - config.dropout)
        made = {name: grad for name, grad in found.items() if name in head}
        inner = {name: grad for name, grad in found.items() if name not in head}
        made |= self.adapter.method.pullback(config, self._tensors(), inner, self.bundle)
        for name, grad in zip(self.names, self._grad_views, strict=True):
            if made[name] is not grad:
                grad[...] = made[name]
        if isinstance(config, LoraConfig) and self.config.lora_fa:
            products = [point for point in self._points if point.op != BIAS_OP]
            project(config, self._fixed, products, dict(zip(self.names, self._grad_views, strict=True)))

    def run_once(self, rows: NDArray[np.int64]) -> None:
        """Run what a step and an evaluation run, on these samples, and leave everything as it was: nothing is kept."""
        caches = self._caches
        if self.prefix is not None:
            self._caches = [PrefixCache(self.bundle, self.prefix, self.objective, None, {})]
        try:
            self._accumulate_backward(self.record, [rows], 1.0) if self.record else self._forward_loss([rows], 1.0)
        finally:
            self._caches = caches
        self._grad[:] = 0.0

    def _at_hand(self, graphs: Sequence[Graph]) -> PrefixCache | None:
        """The cache, where its values are all that the graphs take of a sample and each thread can take its own."""
        cache = self._training_cache()
        if cache is None or self.adapter.config.dropout or not cache.suffices(*graphs) or not cache.is_at_hand():
            return None
        return cache

    def _feeds(self, adapter: Feeds, rows: NDArray[np.int64], total: float, graphs: Sequence[Graph]) -> Feeds:
        """What the graphs take for these samples beside dropout masks: inputs or cached values, adapter."""
        objective, cache = self._of_epoch, self._training_cache()
        if cache is not None and cache.suffices(*graphs) and not self.adapter.config.dropout:
            return objective.loss_inputs(rows, total) | cache.values(rows) | adapter
        feeds = objective.feeds(rows, total)
        return (feeds if cache is None else cache.feeds(feeds, rows)) | adapter

    def files(self, record: TrainingGraph) -> tuple[str, ...]:
        """What a step runs one after the other: the training graph, or two where the host computes the loss."""
        if self._host is None:
            return (record.file,)
        halves = self._halves(record)
        return (self.forward_file, record.file) if halves is None else (halves.forward, halves.backward)

    def graphs(self, record: TrainingGraph) -> tuple[Graph, ...]:
        """The same, loaded; on one core where each core has a part of the batch."""
        return tuple(self._of_a_part(file) for file in self.files(record))

    def _halves(self, record: TrainingGraph) -> Halves | None:
        """The training graph in two, where the host computes its loss from the outputs of inference."""
        return record.halves if self._judge.file is None else None

    def _of_a_part(self, file: str) -> Graph:
        settings = self.bundle.settings
        return self.bundle.graph(file, settings if self._workers == 1 else replace(settings, threads=1))

    def _backward(
        self,
        record: TrainingGraph,
        graphs: Sequence[Graph],
        feeds: Feeds,
        rows: NDArray[np.int64],
        total: float,
        into: Part,
    ) -> float:
        """These samples' share of the loss; the gradients of what is fed are left in `into`."""
        if self._host is None:
            graphs[0].run_into(feeds, into.places)
            return float(into.loss)
        forward, backward = graphs
        halves, outputs = self._halves(record), self._judge.outputs
        kept = () if halves is None else halves.kept
        found = forward.run_values(values_of(feeds, forward), tuple(dict.fromkeys((*outputs, *kept))))
        loss, cotangents = self._host.cotangents({name: found[name].numpy() for name in outputs}, rows, total)
        backward.run_into({**feeds, **cotangents, **{name: found[name] for name in kept}}, into.places)
        return loss

    def _forward_loss(self, parts: list[NDArray[np.int64]], total: float) -> float:
        """The batch's loss at the present parameters, by the inference graph and numpy."""
        adapter, loss, graph = self._adapter_feeds(), 0.0, self._inference
        for members in parts:
            feeds = self._feeds(adapter, members, total, (graph,))
            made = graph.run(feeds, self._judge.outputs)
            if self._host is not None:
                loss += self._host.cotangents(made, members, total)[0]
            else:
                (y,) = made.values()
                of_loss = REFERENCES[self.objective.loss] if self._judge.file is None else weighted_sum
                loss += of_loss(y.astype(np.float64), feeds)[0]
        return loss

    @property
    def _inference(self) -> Graph:
        return self.bundle.graph(self.forward_file)

    def micro_batches(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The batch in parts of `micro_batch_size` samples of similar length, so that little is padding."""
        size = self.config.micro_batch_size
        if size is None or size >= len(rows):
            return [rows]
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def gradients(self) -> dict[str, Floats]:
        """The gradients of the last batch, by the name of each tensor that is trained, in graph orientation."""
        return dict(zip(self.names, (g.copy() for g in self._grad_views), strict=True))

    def learning_rate(self) -> float:
        """The learning rate of the coming step."""
        config = self.config
        warmup = config.warmup_steps or round(config.warmup_ratio * self.total_steps)
        factor = learning_rate_factor(config.lr_scheduler_type, self.step_number, warmup, self.total_steps)
        return config.learning_rate * factor

    def _adapter_feeds(self) -> Feeds:
        self._fed = self._graph_inputs()
        return {**self._absent, **self._fed}

    def _tensors(self) -> dict[str, Floats]:
        """All of the adapter's tensors as they are now, those that are trained as views."""
        return {**self._fixed, **dict(zip(self.names, self._views, strict=True))}

    def _graph_inputs(self) -> dict[str, Floats]:
        """The graph inputs that the tensors make, in arrays of the call before; B' with dropout's factor 1/(1 − p)."""
        config, tensors = self.adapter.config, self._tensors()
        made = self.adapter.method.feeds(config, tensors, self._points, self.bundle, self._fed)
        if config.dropout:
            for name, x in made.items():
                if name.endswith(_AFTER_DROPOUT):
                    x *= np.float32(1.0 / (1.0 - config.dropout))
        return made | {name: tensors[name] for name in head_names(self.bundle.manifest) if name in tensors}

    def _masks(self, record: TrainingGraph, feeds: Feeds, rows: NDArray[np.int64]) -> Feeds:
        """LoRA dropout's masks for these samples in this step."""
        probability = self.adapter.config.dropout
        keys = [[self.config.seed, self.step_number, int(row)] for row in rows]
        return masks_of_feeds(record, self.bundle.manifest.inputs, feeds, probability, keys) if probability else {}

    def epoch_of_step(self, step: int) -> tuple[int, int]:
        """The epoch that a step (from 0) belongs to, and its place in the epoch."""
        return divmod(step, self.steps_per_epoch)

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of an epoch: rows of samples."""
        config = self.config
        return epoch_batches(
            self.objective.lengths(), config.batch_size, config.seed, epoch, by_length=config.group_by_length
        )

    def current(self) -> Adapter:
        """The adapter as it is now (a copy)."""
        return self.adapter.with_tensors({name: tensor.copy() for name, tensor in self._tensors().items()})

    def evaluate(self, objective: Objective, batch_size: int | None = None) -> dict[str, float]:
        """Metrics of the current parameters on held-out samples (the forward graph, no dropout)."""
        batch_size = batch_size or self.part_size
        self.bundle.give_back_pages()  # of the training graphs: the forward graph reads its own beside them
        return evaluate(self.bundle, self.current(), objective, batch_size, self.cache_of(objective))


def trained_tensors(adapter: Adapter, config: TrainingConfig) -> tuple[str, ...]:
    """The names of the adapter's tensors that learn under these settings."""
    learning = (name for name in adapter.tensors if adapter.method.is_trained(name))
    return tuple(name for name in learning if not (config.lora_fa and name.endswith(".lora_A")))
