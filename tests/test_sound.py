"""What a model hears of a sound, how sounds are varied, and how their files are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.errors import BundleError, DataError
from edgelora.media.sound import SoundSettings, filled, heard, loudest
from edgelora.media.sound_augmentation import SOUND_KINDS, augmented
from edgelora.media.wav import Sound
from edgelora.tasks import task_named
from edgelora.tasks.sound import matching_files, sounds_at
from tests.sounds import wav_bytes, write_tones

SETTINGS = SoundSettings("x", 8000, 400)


def noise(length: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(length) * 0.1).astype(np.float32)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 99))
def test_the_window_is_the_loudest(size: int, length: int, seed: int):
    x = noise(length, seed)
    window = loudest(x, size, "zeros")
    assert len(window) == size
    if length > size:
        energies = [float((x[i : i + size] ** 2).sum()) for i in range(length - size + 1)]
        assert float((window**2).sum()) == pytest.approx(max(energies), rel=1e-5)
    else:
        np.testing.assert_array_equal(window, np.pad(x, (0, size - length)))


def test_repeated():
    np.testing.assert_array_equal(filled(np.array([1, 2, 3], np.float32), 7, "repeat"), [1, 2, 3, 1, 2, 3, 1])


def test_soft_sounds_are_made_louder_and_loud_ones_left():
    settings = SoundSettings("x", 8000, 400, loudness=-20.0)
    for gain, wanted in ((0.01, 0.1), (0.5, 0.5)):
        x = np.sign(noise(2000)) * np.float32(gain)
        assert np.sqrt((heard(Sound(x, 8000), settings) ** 2).mean()) == pytest.approx(wanted, rel=1e-4)


def test_another_rate_is_resampled_or_refused(tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(noise(1600), 16000))
    assert len(heard(path, SETTINGS)) == 800
    with pytest.raises(DataError, match=r"a\.wav: its sample rate is 16,000 Hz, and this bundle takes 8,000 Hz alone"):
        heard(path, SoundSettings("x", 8000, 400, resample=False))


def test_silence_is_refused():
    with pytest.raises(DataError, match="third: nothing but silence"):
        heard(Sound(np.zeros(100, np.float32), 8000), SETTINGS, "third")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": 16000.5}, "rate must be a whole number from 1,000 to 192,000"),
        ({"samples": 0}, "samples must be a whole number"),
        ({"samples": True}, "samples must be a whole number"),
        ({"fill": "loop"}, "fill must be one of zeros, repeat"),
        ({"loudness": 3}, "loudness must be"),
        ({"scale": float("nan")}, "scale must be a number above 0"),
        ({"input": ""}, "input must be a name"),
        ({"features": 3}, "features must be a name"),
        ({"resample": "yes"}, "resample must be true or false"),
    ],
)
def test_malformed_settings_are_named(changed: dict, message: str):
    with pytest.raises(BundleError, match=f"there: preprocessing: {message}"):
        SoundSettings.of(SETTINGS.to_dict() | changed, "there")


def test_settings_survive_the_manifest():
    settings = SoundSettings("x", 16000, 99, "features.onnx", "repeat", False, -30.0, 32768.0)
    assert SoundSettings.of(settings.to_dict() | {"later": 1}, "there") == settings


@given(
    length=st.integers(1, 900),
    kinds=st.sets(st.sampled_from(SOUND_KINDS)),
    fill=st.sampled_from(["zeros", "repeat"]),
    epoch=st.integers(0, 5),
    number=st.integers(0, 5),
)
def test_a_variation_depends_on_seed_epoch_and_sample_alone(length, kinds, fill, epoch, number):
    settings, x = SoundSettings("x", 8000, 400, fill=fill), noise(length)
    once = augmented(x, settings, sorted(kinds), 7, epoch, number)
    np.testing.assert_array_equal(once, augmented(x, settings, sorted(kinds), 7, epoch, number))
    assert once.shape == (400,)
    assert once.dtype == np.float32
    if not kinds:
        np.testing.assert_array_equal(once, loudest(x, 400, fill))
    if kinds >= {"gain"}:
        assert not np.array_equal(once, augmented(x, settings, sorted(kinds), 8, epoch, number))


def test_how_far_sounds_are_varied():
    x, settings = noise(400), SETTINGS
    louder, noisy, places = [], [], set()
    for epoch in range(200):
        louder.append(np.abs(augmented(x, settings, ["gain"], 0, epoch, 3)).max() / np.abs(x).max())
        added = augmented(x, settings, ["noise"], 0, epoch, 3) - x
        noisy.append(10 * np.log10((x**2).mean() / (added**2).mean()))
        places.add(int(np.flatnonzero(augmented(x[:100], settings, ["shift"], 0, epoch, 3))[0]))
    assert 0.49 < min(louder) < 0.6
    assert 1.7 < max(louder) < 2.01
    assert 14 < min(noisy) < 20
    assert 35 < max(noisy) < 41
    assert min(places) < 20
    assert max(places) > 280


def test_a_folder_of_labels(tmp_path: Path):
    write_tones(tmp_path, {"low": 200, "high": 900}, 2)
    (tmp_path / "low" / "more").mkdir()
    (tmp_path / "low" / "0.wav").rename(tmp_path / "low" / "more" / "UP.WAV")
    (tmp_path / "low" / "notes.txt").write_text("x")
    (tmp_path / "low" / ".hidden.wav").write_text("x")
    found = [(s.label, s.path.name) for s in sounds_at(tmp_path) or ()]
    assert sorted(found) == [("high", "0.wav"), ("high", "1.wav"), ("low", "1.wav"), ("low", "UP.WAV")]
    first = next(s for s in sounds_at(tmp_path) or () if s.path.name == "0.wav")
    name, digest, label = first.record()
    (tmp_path / "high" / "0.wav").write_bytes(wav_bytes(noise(50), 8000))
    assert first.record()[1] != digest
    assert (name, label) == ("high/0.wav", "high")


def test_folders_without_labels_or_sounds_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="holds no wav files"):
        sounds_at(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "b.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.wav: lies in no folder that names its label"):
        sounds_at(tmp_path)


def test_patterns_of_names(tmp_path: Path):
    for name in ("3_ann_0.wav", "3_ann_1.wav", "12_ann_0.wav", "3_bob_0.wav", "x.txt"):
        (tmp_path / name).write_bytes(b"")
    found = [(s.label, s.path.name) for s in matching_files(f"{tmp_path}/{{label}}_ann_*.wav")]
    assert sorted(found) == [("12", "12_ann_0.wav"), ("3", "3_ann_0.wav"), ("3", "3_ann_1.wav")]
    assert {s.label for s in matching_files(f"{tmp_path}/*_{{label}}_*.wav")} == {"ann", "bob"}
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "a_bob_0.wav").write_bytes(b"")
    assert [s.label for s in matching_files(f"{tmp_path}/{{label}}/*_bob_*.wav")] == ["eve"]
    with pytest.raises(DataError, match="no file fits this pattern"):
        matching_files(f"{tmp_path}/{{label}}_eve_*.wav")


@pytest.mark.parametrize("task", ["audio-classification", "speaker-verification"])
def test_files_that_list_sounds(task: str, tmp_path: Path):
    (tmp_path / "sounds").mkdir()
    for name in ("1.wav", "2.wav"):
        (tmp_path / "sounds" / name).write_bytes(wav_bytes(noise(50), 8000))
    (tmp_path / "a.csv").write_text("audio,label\nsounds/1.wav,yes\nsounds/2.wav,4\n")
    lines = ['{"audio": "sounds/1.wav", "label": "yes"}', '{"audio": "sounds/2.wav", "label": 4}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for name in ("a.csv", "a.jsonl"):
        found = [(s.path, s.label) for s in task_named(task).read(tmp_path / name)]  # pyright: ignore
        assert found == [(tmp_path / "sounds/1.wav", "yes"), (tmp_path / "sounds/2.wav", "4")]
    (tmp_path / "b.jsonl").write_text("\n".join([lines[0], '{"audio": "3.wav", "label": "x"}', '{"label": "x"}']))
    with pytest.raises(DataError, match=r"(?s)line 2: .*3\.wav: no such file.*b\.jsonl, line 3: no field 'audio'"):
        task_named(task).read(tmp_path / "b.jsonl")
