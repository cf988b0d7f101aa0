"""From wav files to predictions: classes of sounds and voices, in Python and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.cli.main import main
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, BundleError, ConfigError, ConversionError, DataError
from edgelora.manifest import Manifest
from edgelora.media.wav import Sound, read_wav
from edgelora.runtime import Model
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training import train
from edgelora.training_config import TrainingConfig
from edgelora.training_start import starting_adapter
from edgelora.voices import enrol, recognise, threshold_of
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sound_features import SoundOptions
from edgelora_tools.sources.torch_export import module_source
from tests.sounds import wav_bytes, write_tones

TONES = {"low": 300.0, "middle": 700.0, "high": 1500.0}
OTHERS = {"deep": 450.0, "shrill": 2200.0}
FRAMES, MELS = 20, 16
SOUND = SoundOptions({"rate": 8000, "fill": "repeat"}, {"n_fft": 256, "hop": 100, "mels": MELS})
CONFIG = TrainingConfig(num_train_epochs=4, batch_size=6, learning_rate=1e-2, seed=3)


class Hearing(torch.nn.Module):
    """Two layers on frames, their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(MELS, 24), torch.nn.Linear(24, 12)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(mels))).mean(1)


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    torch.manual_seed(0)
    source = module_source(Hearing(), {"mels": torch.randn(2, FRAMES, MELS)}, "hearing")
    made: dict[str, Path] = {}

    def bundle(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp("sound") / f"{task}.edgelora"
            convert(source, made[task], ConvertOptions(task=task, sound=SOUND, target_modules="all-linear"))
        return made[task]

    return bundle


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"), TONES, 8, rate=16000)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("others"), OTHERS, 6, rate=8000, seed=1)


def test_an_adapter_of_other_features_is_refused(bundle_of: Any, tmp_path: Path) -> None:
    """The weights are the same; a spectrum of another hop is not."""
    torch.manual_seed(0)
    module, other = Hearing(), {"n_fft": 256, "hop": 120, "mels": MELS}
    source = module_source(module, {"mels": torch.randn(2, FRAMES, MELS)}, "hearing")
    made: dict[str, Manifest] = {}
    for name, mel in (("same", SOUND.log_mel), ("other", other)):
        options = ConvertOptions(
            task="feature-extraction", sound=SoundOptions(SOUND.settings, mel), target_modules="all-linear"
        )
        made[name] = convert(source, tmp_path / f"{name}.edgelora", options)
    theirs = Bundle.open(bundle_of("audio-classification")).manifest
    assert made["same"].base_digest == theirs.base_digest != made["other"].base_digest
    adapter = new_adapter(made["same"], LoraConfig(r=2))
    adapter.validate(made["same"])
    with pytest.raises(AdapterError, match="trained against another base"):
        adapter.validate(made["other"])


@pytest.fixture
def hearing(bundle_of: Any, tmp_path: Path) -> Callable[[str], Model]:
    return lambda task: Model.open(bundle_of(task), tmp_path / "store")


def test_sounds_are_told_apart(hearing: Any, sounds: Path):
    model = hearing("audio-classification")
    samples = model.task.read(sounds)
    report = train(model, "anna", samples, lora=LoraConfig(r=4, lora_alpha=8), config=CONFIG)
    assert report.labels == ("high", "low", "middle")
    paths = [s.path for s in samples]
    assert np.mean([a == s.label for a, s in zip(model.predict(paths, "anna"), samples, strict=True)]) > 0.9
    raw = [paths[0].read_bytes(), read_wav(paths[0]), str(paths[0])]
    assert len(set(model.predict(raw, "anna"))) == 1
    np.testing.assert_array_equal(model.predict_proba(raw[:1], "anna"), model.predict_proba(raw[2:], "anna"))
    with pytest.raises(DataError, match="sound 2: nothing but silence"):
        model.predict([raw[0], Sound(np.zeros(99, np.float32), 8000)], "anna")
    with pytest.raises(DataError, match="wav files, their bytes or Sounds; 3 is none"):
        model.predict([3], "anna")


def test_a_killed_run_hears_the_same_variations(hearing: Any, sounds: Path):
    """Stopped in the middle of an epoch and begun again from there, the parameters have the same bits."""
    model = hearing("audio-classification")
    config = TrainingConfig(num_train_epochs=3, batch_size=5, augment=("gain", "shift", "noise"), seed=1)
    samples, labels = model.task.read(sounds), tuple(sorted(TONES))
    start = starting_adapter(model.bundle.manifest, None, LoraConfig(r=2, lora_alpha=2), labels, samples, 1)

    def run(trainer: Trainer, first: int, last: int) -> None:
        for step in range(first, last):
            epoch, place = trainer.epoch_of_step(step)
            trainer.step(trainer.batches(epoch)[place])

    def trainer() -> Trainer:
        return Trainer(model.bundle, start, objective_for(model, samples, labels, config), config)

    whole, stopped, resumed = trainer(), trainer(), trainer()
    run(whole, 0, 9)
    run(stopped, 0, 7)
    resumed.flat[:] = stopped.flat
    resumed.optimizer, resumed.step_number = stopped.optimizer, stopped.step_number
    run(resumed, 7, 9)
    np.testing.assert_array_equal(resumed.flat, whole.flat)
    plain = Trainer(model.bundle, start, objective_for(model, samples, labels, CONFIG), CONFIG)
    run(plain, 0, 1)
    first = trainer()
    run(first, 0, 1)
    assert not np.array_equal(first.flat, plain.flat)


def test_voices_that_training_never_heard(hearing: Any, sounds: Path, others: Path):
    model = hearing("speaker-verification")
    samples, held_out = model.task.read(sounds), model.task.read(others)
    report = train(model, "home", samples, held_out, LoraConfig(r=4, lora_alpha=8), CONFIG)
    assert report.labels is None
    assert {"eval_eer", "eval_threshold", "eval_loss"} <= set(report.history[-1])
    assert report.history[-1]["eval_eer"] <= 0.5
    files = {name: sorted((others / name).glob("*.wav")) for name in OTHERS}
    voices = enrol(model, [(name, path) for name, paths in files.items() for path in paths[:3]], "home")
    np.testing.assert_allclose(np.linalg.norm(voices.embeddings, axis=1), 1, rtol=1e-5)
    threshold = threshold_of(model.store.load("home"))
    assert threshold is not None
    for name, paths in files.items():
        for match in recognise(model, paths[3:], voices, "home", threshold):
            assert match.nearest == name
            assert match.speaker == (name if match.score >= threshold else None)
    assert recognise(model, files["deep"][3:4], voices, "home")[0].accepted is None
    with pytest.raises(ConfigError, match="micro_batch_size cannot split"):
        objective_for(model, samples, None, TrainingConfig(micro_batch_size=2))
    with pytest.raises(DataError, match=r"have 1 speaker \(deep\)"):
        objective_for(model, [s for s in held_out if s.labels == ("deep",)], None, CONFIG)


def test_the_command_line(bundle_of: Any, sounds: Path, others: Path, tmp_path: Path, capsys: Any):
    bundle, store = str(bundle_of("speaker-verification")), ["--store", str(tmp_path / "store")]
    short = ["--epochs", "2", "--batch-size", "8", "--rank", "2", "--augment", "gain"]
    command = ["train", bundle, *store, "--adapter", "home", "--data", str(sounds), "--validation", str(others), *short]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    heard = [str(others / "deep" / "5.wav"), str(others / "shrill")]
    predict = ["predict", bundle, *store, "--adapter", "home", "--voices", str(others), *heard, "--json"]
    assert main(predict) == 0
    results = json.loads(capsys.readouterr().out)
    assert [r["nearest"] for r in results] == ["deep", *["shrill"] * 6]
    assert main([*predict, "--threshold", "1"]) == 0
    assert {r["speaker"] for r in json.loads(capsys.readouterr().out)} == {None}
    for wrong in ("80", "nan"):
        assert main([*predict, "--threshold", wrong]) == 2
        assert f"--threshold is a cosine, from -1 to 1, not {wrong}" in capsys.readouterr().err
    assert main(["predict", bundle, *store, heard[0], "--threshold", "0.5"]) == 2
    assert "--threshold is for --voices" in capsys.readouterr().err
    assert main(["info", bundle]) == 0
    window = "audio, windows of 0.237 s resampled to 8,000 Hz, shorter sounds repeated; features by features.onnx"
    assert window in capsys.readouterr().out
    assert main(["eval", bundle, *store, "--adapter", "home", "--data", f"{others}/{{label}}/*.wav"]) == 0
    assert "eer" in capsys.readouterr().out
    assert main(["predict", bundle, *store, heard[0], "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["embedding"]) == 12
    assert main(["predict", bundle, *store, "--voices", heard[0], heard[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "audio": heard[0], "speaker": "5", "score": 1.0, "nearest": "5"
    }  # fmt: skip
    assert main(["predict", str(bundle_of("audio-classification")), *store, "--voices", heard[0], heard[0]]) == 2
    assert "voices are of the task speaker-verification" in capsys.readouterr().err


def test_sounds_that_cannot_be_used_are_named_before_anything_changes(hearing: Any, sounds: Path, tmp_path: Path):
    model = hearing("audio-classification")
    folder = write_tones(tmp_path / "data", TONES, 2)
    good = (folder / "low" / "0.wav").read_bytes()
    (folder / "low" / "cut.wav").write_bytes(good[: len(good) // 2])
    (folder / "low" / "silent.wav").write_bytes(wav_bytes(np.zeros(500, np.float32), 8000))
    (folder / "high" / "text.wav").write_text("not a sound")
    with pytest.raises(DataError) as caught:
        train(model, "anna", model.task.read(folder), config=CONFIG)
    text = str(caught.value)
    for part in ("cut.wav: cut off", "silent.wav: nothing but silence", "text.wav: not a wav file"):
        assert part in text
    assert not model.store.exists("anna")


def test_settings_that_do_not_make_the_models_input(bundle_of: Any, tmp_path: Path):
    source = module_source(Hearing(), {"mels": torch.randn(2, FRAMES, MELS)}, "hearing")

    def refused(message: str, sound: SoundOptions) -> None:
        options = ConvertOptions(task="audio-classification", sound=sound)
        with pytest.raises(ConversionError, match=message):
            convert(source, tmp_path / "out.edgelora", options)

    refused("how much sound does the model hear", SoundOptions())
    refused("no axis of 40 bands", SoundOptions({}, {}))
    refused(
        r"make 65 frames, and the model takes 20", SoundOptions({"seconds": 1, "rate": 8000}, {"mels": 16, "hop": 125})
    )
    refused(
        "41 frames, and the model takes 20.*or center=false",
        SoundOptions({"seconds": 0.5}, {"n_fft": 256, "hop": 200, "mels": MELS}),
    )
    refused("no speed; there are rate, seconds", SoundOptions({"speed": 2}, {"mels": 16}))
    refused("fill must be one of", SoundOptions({"fill": "loop"}, {"mels": 16}))
    refused("rate is 8000 Hz and the spectrum's 16,000", SoundOptions({"rate": 8000}, {"mels": 16, "rate": 16000}))
    refused("exclude each other", SoundOptions({}, {"mels": 16}, tmp_path / "a.onnx"))
    refused("no such file of features", SoundOptions({"seconds": 1}, features=tmp_path / "a.onnx"))


def test_sounds_for_a_model_of_arrays_are_refused_with_the_remedy(tmp_path: Path):
    source = module_source(Hearing(), {"mels": torch.randn(2, FRAMES, MELS)}, "hearing")
    convert(source, tmp_path / "arrays.edgelora", ConvertOptions(task="audio-classification"))
    data = write_tones(tmp_path / "tones", TONES, 2)
    model = Model.open(tmp_path / "arrays.edgelora", tmp_path / "store")
    with pytest.raises(ConfigError, match=r"takes arrays, not sounds: convert .* --sound, and with --log-mel"):
        train(model, "anna", model.task.read(data), config=CONFIG)
    assert not list((tmp_path / "store").rglob("anna"))


def test_a_file_of_features_is_used_as_it_is(bundle_of: Any, sounds: Path, tmp_path: Path):
    """The bundle's own graph of a spectrum, brought along as a file with a factor and an offset."""
    ours = Model.open(bundle_of("speaker-verification"), tmp_path / "store")
    features = bundle_of("speaker-verification") / "features.onnx"
    source = module_source(Hearing(), {"mels": torch.randn(2, FRAMES, MELS)}, "hearing")
    window = {"rate": 8000, "fill": "repeat", "seconds": 0.2375}
    brought = SoundOptions(window, features=features, factor=2.0, offset=1.0)
    path = tmp_path / "brought.edgelora"
    convert(source, path, ConvertOptions(task="feature-extraction", sound=brought))
    theirs = Model.open(path, tmp_path / "other")
    files = sorted((sounds / "low").glob("*.wav"))[:3]
    plain, brought_to = (np.asarray(model.encode(files)["mels"], np.float64) for model in (ours, theirs))
    np.testing.assert_allclose(brought_to, 2 * plain + 1, rtol=1e-5, atol=1e-5)
    body = json.loads((path / "bundle.json").read_text())
    body["preprocessing"]["features"] = "elsewhere.onnx"
    (path / "bundle.json").write_text(json.dumps(body))
    with pytest.raises(BundleError, match=r"files does not list elsewhere\.onnx"):
        Model.open(path)
