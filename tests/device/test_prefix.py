"""Training the last layers from what a frozen prefix made of each sample: the same losses, whatever befalls it."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelora import LNTuningConfig, LoraConfig, PromptTuningConfig, TrainingConfig, train
from edgelora.adapter import new_adapter
from edgelora.config import AdapterConfig
from edgelora.data import PairSample, TextSample, TokenSample
from edgelora.errors import ConfigError, StoreError
from edgelora.prefix_cache import CacheSettings, PrefixCache
from edgelora.record_file import RecordFile
from edgelora.runtime import Model
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training_run import fit
from edgelora.training_state import STATE_FILE
from tests.device import tiny

CLASSIFICATION = "sequence-classification"
SETTINGS: dict[str, Any] = {"num_train_epochs": 3, "batch_size": 8, "learning_rate": 2e-2, "train_last": 1}
LORA = LoraConfig(r=4, lora_alpha=8)


@pytest.fixture(scope="module")
def bundles(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("prefixes")

    def made(task: str) -> Path:
        path = folder / f"{task}.edgelora"
        return path if path.exists() else tiny.write_bundle(base, task, path, train_last=(1, 2))

    return made


@pytest.fixture
def model(bundles: Callable[[str], Path], tmp_path: Path) -> Model:
    return Model.open(bundles(CLASSIFICATION), tmp_path / "store")


def samples(count: int = 40) -> list[TextSample]:
    return [TextSample(row["text"], row["label"]) for row in tiny.commands(count)]


def start(
    model: Model, data: Any = None, folder: Path | None = None, lora: LoraConfig = LORA, **changes: Any
) -> Trainer:
    """A trainer of the last layer, from the same fresh adapter each time."""
    config = settings(**changes)
    data = samples() if data is None else data
    labels = None if model.bundle.manifest.head is None else tuple(sorted({s.label for s in data}))
    layers = LoraConfig(**{**lora.__dict__, "layers_to_transform": (1,)})
    adapter = new_adapter(model.bundle.manifest, layers, labels, rng=np.random.default_rng(7))
    return Trainer(model.bundle, adapter, objective_for(model, data, labels, config), config, folder)


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{**SETTINGS, **changes})


def losses(trainer: Trainer) -> list[float]:
    seen: list[float] = []
    fit(trainer, callback=lambda step, _progress: seen.append(step.loss))
    return seen


def whole(model: Model, **changes: Any) -> list[float]:
    """The losses of the same adapter, trained by the graphs that were not cut."""
    return losses(start(model, train_last=None, **changes))


# --- the same losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["memory", "disk", None])
def test_the_loss_curve_is_that_of_the_whole_graph(model: Model, tmp_path: Path, cache: str | None):
    ours = losses(start(model, folder=tmp_path / "cache", cache=cache))
    theirs = whole(model)
    assert len(ours) == 15 and theirs[-1] < 0.7 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def test_memory_and_disk_give_the_same_bits(model: Model, tmp_path: Path):
    assert losses(start(model, cache="memory")) == losses(start(model, folder=tmp_path, cache="disk"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("texts", "even"), [(["warm"] * 6, True), (["warm", "warm red light now", "off"] * 2, False)])
def test_a_batch_from_memory_is_that_from_disk(model: Model, tmp_path: Path, dtype: str, texts: list[str], even: bool):
    """Samples of one length are taken from memory at once, others one by one; every batch of them has the same bits."""
    data = [TextSample(f"{text} {word}", "a") for text, word in zip(texts, ("a", "b", "c", "d", "e", "f"), strict=True)]
    memory = start(model, data, cache_dtype=dtype)
    disk = start(model, data, tmp_path, cache="disk", cache_dtype=dtype)
    for rows in ([0], [3, 1], [5, 0, 2, 2], [0, 1, 2, 3, 4, 5]):
        chosen = np.asarray(rows, np.int64)
        feeds = memory.objective.inputs(chosen)
        caches = [trainer.cache_of(trainer.objective) for trainer in (memory, disk)]
        ours, theirs = (cache.feeds(feeds, chosen) for cache in caches if cache is not None)
        records = caches[0] and caches[0]._records
        assert records is not None and (records.table(chosen) is not None) is even
        assert ours.keys() == theirs.keys()
        for name, x in ours.items():
            assert x.dtype == theirs[name].dtype and x.flags.c_contiguous
            assert x.shape == theirs[name].shape and x.tobytes() == theirs[name].tobytes()


def test_float16_halves_the_cache_and_stays_close(model: Model):
    exact, half = start(model), start(model, cache_dtype="float16")
    a, b = losses(exact), losses(half)
    assert half._caches[0].size * 2 == exact._caches[0].size
    np.testing.assert_allclose(b, a, rtol=5e-3)
    assert a != b, "half the digits are not all the digits"


def test_micro_batches_dropout_and_spsa_take_the_cache_too(model: Model):
    np.testing.assert_allclose(losses(start(model, micro_batch_size=3)), whole(model), rtol=1e-4)
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3)
    np.testing.assert_allclose(losses(start(model, lora=lora)), losses(start(model, lora=lora, cache=None)), rtol=1e-4)
    ours = losses(start(model, gradient="spsa", num_train_epochs=1))
    np.testing.assert_allclose(ours, whole(model, gradient="spsa", num_train_epochs=1), rtol=1e-3)


def test_pairs_are_kept_by_the_text(bundles: Callable[[str], Path], tmp_path: Path):
    model = Model.open(bundles("sentence-embedding"), tmp_path / "store")
    data = [PairSample(f"{a} now please", f"please {a}", None) for a in tiny.WORDS[:17]]
    options: dict[str, Any] = {"data": data, "batch_size": 5}
    np.testing.assert_allclose(losses(start(model, **options)), whole(model, **options), rtol=1e-4)


def test_labels_of_tokens(bundles: Callable[[str], Path], tmp_path: Path):
    model = Model.open(bundles("token-classification"), tmp_path / "store")
    texts = [row["text"].split() for row in tiny.commands(20)]
    data = [TokenSample(tuple(t), tuple("noun" if w in ("room", "light") else "other" for w in t)) for t in texts]
    curves = []
    for last in (1, None):
        config = settings(train_last=last)
        lora = LoraConfig(r=4, lora_alpha=8, layers_to_transform=(1,))
        adapter = new_adapter(model.bundle.manifest, lora, ("noun", "other"), rng=np.random.default_rng(7))
        objective = objective_for(model, data, ("noun", "other"), config)
        trainer = Trainer(model.bundle, adapter, objective, config)
        curves.append([*losses(trainer), *trainer.evaluate(objective).values()])
    np.testing.assert_allclose(*curves, rtol=1e-4)


def test_evaluation_starts_from_the_cache_too(model: Model):
    trainer, other = start(model), start(model, train_last=None)
    held = objective_for(model, samples(11), ("bright", "quiet", "warm"), trainer.config)
    for a, b in zip(trainer.evaluate(held).values(), other.evaluate(held).values(), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert trainer.cache_of(held).size > 0  # pyright: ignore[reportOptionalMemberAccess]


# --- the limit, the file, the session ---------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1000, 60_000])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_what_does_not_fit_is_computed_each_time(model: Model, tmp_path: Path, limit: int, cache: str):
    trainer = start(model, samples(80), folder=tmp_path, cache=cache, cache_limit=limit)
    theirs = losses(start(model, samples(80), train_last=None))
    np.testing.assert_allclose(losses(trainer), theirs, rtol=2e-5)
    assert trainer._caches[0].size <= limit
    assert (trainer._caches[0].size > 0) == (limit == 60_000)
    if cache == "disk":
        (file,) = tmp_path.glob("*.cache")
        assert file.stat().st_size <= limit + 3000


def test_the_prefix_is_let_go_once_all_is_kept(model: Model):
    trainer = start(model)
    trainer.step(np.arange(8))
    loaded = {file for file, _ in model.bundle._graphs}
    assert loaded == {"train-cross-entropy-last-1.onnx"}, "neither the prefix nor the whole model stays in memory"
    partly = start(model, samples(80), cache_limit=60_000)
    partly.step(np.arange(8))
    assert "prefix-last-1.onnx" in {file for file, _ in model.bundle._graphs}


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("*.cache")
    return path


def test_the_file_is_private_and_used_again(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = losses(start(model, folder=tmp_path, cache="disk"))
    path = file_of(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".tmp-*"))
    before = path.read_bytes()
    monkeypatch.setattr(PrefixCache, "_fill", lambda *_: pytest.fail("the file holds everything"))
    assert losses(start(model, folder=tmp_path, cache="disk")) == first
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda b: b[:-1], id="truncated"),
        pytest.param(lambda b: b[:100], id="cut in the header"),
        pytest.param(lambda b: b"", id="empty"),
        pytest.param(lambda b: b + b"\0", id="longer"),
        pytest.param(lambda b: b"X" + b[1:], id="not one"),
        pytest.param(lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], id="header"),
        pytest.param(lambda b: b[:-7] + bytes([b[-7] ^ 4]) + b[-6:], id="a bit of a record"),
        pytest.param(lambda b: b[:8] + b"\xff" * 8 + b[16:], id="a header without end"),
    ],
)
def test_a_spoilt_file_is_filled_again(model: Model, tmp_path: Path, spoil: Callable[[bytes], bytes]):
    wanted = losses(start(model, folder=tmp_path, cache="disk"))
    path = file_of(tmp_path)
    whole_file = path.read_bytes()
    path.write_bytes(spoil(whole_file))
    assert losses(start(model, folder=tmp_path, cache="disk")) == wanted
    assert path.read_bytes() == whole_file


def test_a_record_that_rots_during_training_is_noticed(model: Model, tmp_path: Path):
    wanted = losses(start(model, folder=tmp_path / "a", cache="disk"))
    trainer = start(model, folder=tmp_path / "b", cache="disk")
    seen = [trainer.step(rows).loss for rows in trainer.batches(0)]
    path = file_of(tmp_path / "b")
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    seen += [trainer.step(rows).loss for epoch in (1, 2) for rows in trainer.batches(epoch)]
    assert seen == wanted
    assert trainer._caches[0].refilled == 1


def test_a_file_of_other_data_or_another_type_is_not_taken(model: Model, tmp_path: Path):
    """Other samples have another name; the same name with other facts is refused by its header."""
    losses(start(model, folder=tmp_path, cache="disk"))
    first = file_of(tmp_path)
    other = samples()[::-1]
    trainer = start(model, other, folder=tmp_path, cache="disk")
    trainer.step(np.arange(8))
    assert len(list(tmp_path.glob("*.cache"))) == 2
    second = next(p for p in tmp_path.glob("*.cache") if p != first)
    second.write_bytes(first.read_bytes())
    np.testing.assert_allclose(
        losses(start(model, other, folder=tmp_path, cache="disk")),
        losses(start(model, other, train_last=None)),
        rtol=2e-5,
    )
    half = start(model, folder=tmp_path, cache="disk", cache_dtype="float16")
    full = first.stat().st_size
    half.step(np.arange(8))
    assert first.stat().st_size < 0.6 * full


def test_a_full_disk_says_what_to_do(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordFile, "write", full)
    with pytest.raises(StoreError, match=r"No space left.*--cache-limit"):
        start(model, folder=tmp_path, cache="disk").step(np.arange(8))
    assert list(tmp_path.iterdir()) == []


# --- padding ----------------------------------------------------------------------------------------------


def test_padding_that_matters_is_kept_as_it_is(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Where a masked position changes an output, all samples are padded to the longest, and the result is of that."""
    monkeypatch.setattr(PrefixCache, "_padding_is_free", lambda *_: False)
    trainer = start(model)
    np.testing.assert_allclose(losses(trainer), whole(model), rtol=2e-5)  # this base masks, so that it makes no odds
    cache = trainer._caches[0]
    assert cache.width == max(trainer.objective.lengths())
    assert cache.width is not None and cache.size == 40 * cache.width * 32 * 4
    feeds = cache.feeds(trainer.objective.feeds(np.arange(2), 2.0), np.arange(2))
    assert feeds["attention_mask"].shape == (2, cache.width) and feeds["prefix.0"].shape == (2, cache.width, 32)


def test_padding_is_tried_on_the_samples(model: Model):
    trainer = start(model)
    trainer.step(np.arange(8))
    cache = trainer._caches[0]
    assert cache.width is None and cache._layout is not None
    assert cache._padding_is_free(cache._layout)

    class NoMask:
        """A base that attends to everything: the mask says which positions count, and is not told to the model."""

        def __init__(self, graph: Any) -> None:
            self.graph = graph

        def run(self, feeds: Any, outputs: Any = None) -> Any:
            return self.graph.run({**feeds, "attention_mask": np.ones_like(feeds["attention_mask"])}, outputs)

        def give_back_pages(self) -> None:
            self.graph.give_back_pages()

    graphs = model.bundle._graphs
    for file in (cache.prefix.file, cache.prefix.forward):
        graphs[file, model.bundle.settings] = NoMask(model.bundle.graph(file))  # pyright: ignore[reportArgumentType]
    assert not cache._padding_is_free(cache._layout)


# --- the run ----------------------------------------------------------------------------------------------


def test_a_run_adapts_the_last_layers_alone_and_leaves_nothing(model: Model):
    config = settings(cache="disk")
    report = train(model, "a", samples(), samples(9), LoraConfig(r=4, lora_alpha=8), config)
    adapter = model.store.load("a")
    assert adapter.config.layers_to_transform == (1,)
    assert all(".layer.1." in point for point in adapter.points)
    assert report.history[-1]["eval_accuracy"] > 0.9
    assert not model.store.state_path("a").exists()
    assert not list(model.store.root.rglob("*.cache"))
    assert train(model, "a", samples(), samples(9), None, settings(cache="memory")).already_done, (
        "where the cache lies does not decide the result"
    )
    assert not train(model, "a", samples(), samples(9), None, settings(cache_dtype="float16")).already_done


def test_the_cache_is_kept_by_choice(model: Model, monkeypatch: pytest.MonkeyPatch):
    config = settings(cache="disk", keep_cache=True)
    train(model, "a", samples(), config=config)
    kept = list(model.store.state_path("a").iterdir())
    assert [path.suffix for path in kept] == [".cache"]
    monkeypatch.setattr(PrefixCache, "_fill", lambda *_: pytest.fail("the file holds everything"))
    report = train(model, "a", samples(), config=settings(cache="disk"), again=True)
    assert report.version == 2 and not model.store.state_path("a").exists()


def test_an_interrupted_run_ends_with_the_same_bits(model: Model, tmp_path: Path):
    class Stop(Exception):
        pass

    def stop(step: Any, _progress: Any) -> None:
        if step.step == 7:
            raise Stop

    for cache in ("memory", "disk"):
        config = settings(cache=cache, save_steps=1)
        with pytest.raises(Stop):
            train(model, cache, samples(), samples(9), config=config, callback=stop)
        assert (model.store.state_path(cache) / STATE_FILE).exists()
        report = train(model, cache, samples(), samples(9), config=config)
        assert report.resumed_at == 7
    train(model, "whole", samples(), samples(9), config=settings())
    wanted = model.store.load("whole").tensors
    for cache in ("memory", "disk"):
        for name, tensor in model.store.load(cache).tensors.items():
            np.testing.assert_array_equal(tensor, wanted[name], err_msg=name)


def test_a_killed_command_ends_with_the_bytes_of_one_that_nobody_touched(
    bundles: Callable[[str], Path], tmp_path: Path
):
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands(40))

    def command(store: str) -> Any:
        return tiny.start(
            "train", bundles(CLASSIFICATION), "--adapter", "a", "--data", data, "--store", tmp_path / store,
            "--epochs", "60", "--batch-size", "8", "--train-last", "1", "--cache", "disk", "--save-steps", "1",
        )  # fmt: skip

    process = command("whole")
    assert process.wait(60) == 0
    for kill in range(3):
        process, folder = command("killed"), tmp_path / "killed" / "a" / "training"
        seen, until = _modified(folder / STATE_FILE), time.monotonic() + 60
        while kill and _modified(folder / STATE_FILE) == seen and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.001)
        if not kill:
            time.sleep(0.5)
        process.kill()
        process.communicate()
        assert kill == 0 or list(folder.glob("*.cache")), "killed in the middle"
    process = command("killed")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "continuing at step" in err, err
    one, two = (
        (tmp_path / store / "a" / "versions" / "000001" / "adapter_model.safetensors").read_bytes()
        for store in ("whole", "killed")
    )
    assert one == two
    assert not list(tmp_path.rglob("*.cache"))


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def test_refusals(model: Model, bundles: Callable[[str], Path], open_model: Callable[..., Model]):
    with pytest.raises(ConfigError, match=r"no graphs for train_last 3; it has 1, 2: convert with --train-last 3"):
        train(model, "a", samples(), config=settings(train_last=3))
    with pytest.raises(ConfigError, match="no graphs for train_last 1: convert with --train-last 1"):
        train(open_model(), "a", samples(), config=settings())
    train(model, "all", samples(), config=TrainingConfig(max_steps=1))
    with pytest.raises(ConfigError, match=r"the adapter has .*layer\.0.*--restart"):
        train(model, "all", samples(), config=settings())
    with pytest.raises(ConfigError, match="none of the points"):
        train(model, "b", samples(), None, LoraConfig(layers_to_transform=(0,)), settings())
    with pytest.raises(ConfigError, match="needs a folder"):
        start(model, cache="disk")
    wrong: list[dict[str, Any]] = [{"cache": "tape"}, {"cache_dtype": "int4"}, {"cache_limit": -1}, {"train_last": 0}]
    for setting in wrong:
        with pytest.raises(ConfigError, match=next(iter(setting))):
            TrainingConfig(**setting)


def test_methods_that_a_prefix_has_no_graphs_for_are_named(base: Any, tmp_path: Path):
    methods: dict[str, AdapterConfig] = {
        "prompt": PromptTuningConfig(num_virtual_tokens=2),
        "layer-norm": LNTuningConfig(),
        "dora": LoraConfig(use_dora=True),
    }
    path = tiny.write_bundle(base, CLASSIFICATION, tmp_path / "b.edgelora", train_last=(1,), methods=tuple(methods))
    for name, asked in methods.items():
        with pytest.raises(ConfigError, match=f"a prefix has no graphs for {name} adapters: leave train_last out"):
            train(Model.open(path, tmp_path / "store"), "a", samples(), None, asked, settings())


def test_samples_of_two_sizes_without_a_mask_are_refused(model: Model):
    trainer = start(model)
    assert trainer.prefix is not None

    class Uneven:
        loss, metric, higher_is_better = "cross-entropy", "accuracy", True

        def lengths(self) -> Any:
            return np.arange(64)

        def inputs(self, rows: Any) -> Any:
            inputs = trainer.objective.inputs(np.arange(len(rows)))
            return {name: x[:, : 3 + int(rows.min() > 0)] for name, x in inputs.items()}

    cache = PrefixCache(model.bundle, trainer.prefix, Uneven(), CacheSettings(), {})  # pyright: ignore[reportArgumentType]
    cache._sequence = None
    with pytest.raises(ConfigError, match="without an attention_mask"):
        cache._lay_out()


def test_the_command(bundles: Callable[[str], Path], tmp_path: Path):
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands(40))
    store = ("--store", tmp_path / "store", "--epochs", "2", "--batch-size", "8", "--train-last", "1")
    process = tiny.start(
        "train", bundles(CLASSIFICATION), "--adapter", "a", "--data", data, *store, "--cache", "disk",
        "--cache-dtype", "float16", "--cache-limit", "1.5MB",
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "version 1 saved" in out
    bad = tiny.start("train", bundles(CLASSIFICATION), "--adapter", "a", "--data", data, "--cache-limit", "lots")
    assert "is not a size" in bad.communicate(timeout=60)[1]


# --- skips ------------------------------------------------------------------------------------------------


def test_skips_train_from_pooled_vectors_and_are_not_peft(base: Any, tmp_path: Path):
    path = tiny.write_bundle(base, CLASSIFICATION, tmp_path / "skip.edgelora", target_modules=None, placement="skip")
    model = Model.open(path, tmp_path / "store")
    assert [point.id for point in model.bundle.manifest.points] == ["encoder.layer.0.skip", "encoder.layer.1.skip"]
    curves = []
    for cache in ("memory", None):
        seen: list[float] = []
        config = settings(train_last=None, cache=cache)
        train(model, f"with-{cache}", samples(), config=config, callback=lambda s, _: seen.append(s.loss))  # noqa: B023
        curves.append(seen)
    np.testing.assert_allclose(*curves, rtol=2e-5)
    assert curves[0][-1] < 0.7 * curves[0][0]
    trainer = Trainer(
        model.bundle,
        model.store.load("with-memory"),
        objective_for(model, samples(), ("bright", "quiet", "warm"), settings()),
        settings(train_last=None),
    )
    trainer.step(np.arange(8))
    assert trainer._caches[0].size == 40 * 3 * 32 * 4, "a vector for each layer and one for the last"
    whole = TrainingConfig(num_train_epochs=1)
    train(model, "dropout", samples(), lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2), config=whole)
    assert model.predict(["make the room warm now"], "with-memory") == ["warm"]
    process = tiny.start(
        "export", path, "--adapter", "with-memory", "--store", tmp_path / "store", "-o", tmp_path / "peft"
    )
    assert "PEFT has no place for encoder.layer.0.skip" in process.communicate(timeout=60)[1]
    assert process.returncode == 2 and not (tmp_path / "peft").exists()
