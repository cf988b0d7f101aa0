"""An adapter per speaker for spoken digits, each tried on every speaker; a table and a plot.

    python examples/spoken_digits.py FOLDER --recordings RECORDINGS --embedding FILE.onnx --features FILE.onnx

RECORDINGS holds the Free Spoken Digit Dataset (`digit_speaker_number.wav`, CC BY-SA 4.0). The two files are
openWakeWord's `embedding_model.onnx` and `melspectrogram.onnx`, in the package openwakeword 0.4.0; they are under
CC BY-NC-SA and not part of EdgeLoRA. Any other model of sound does, with its own features.

Each speaker gives 10 recordings of every digit (numbers 5 to 14); 15 others (0 to 4 and 15 to 24) are held out. Head
alone is a new head on the frozen model, LoRA the same with adapters in its convolutions, each at its own rate. With
--choose the held-out recordings are left alone, and numbers 12 to 14 are held out instead, to choose rates and epochs
by. Needs edgelora[convert] and matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import edgelora as el
from edgelora.tasks.sound import SoundSample

TASK = "audio-classification"
TRAINED, HELD_OUT = range(5, 15), (*range(5), *range(15, 25))
CHOOSING = range(5, 12), range(12, 15)
METHODS = {"head alone": el.LoraConfig(target_modules=()), "LoRA": el.LoraConfig(r=8, lora_alpha=16)}
HEAD_RATE, RATE = 3e-2, 3e-3  # the best of four each by --choose


def make_bundle(path: Path, embedding: Path, features: Path) -> Path:
    """Convert the speech embedding, with the spectrum that it was trained on: on a desktop, once."""
    if path.exists():
        return path
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.sound_features import SoundOptions
    from edgelora_tools.sources import open_source

    window = {"rate": 16_000, "seconds": 0.79, "fill": "zeros", "scale": 32768}  # what its authors feed it
    sound = SoundOptions(window, features=features, factor=0.1, offset=2.0)
    options = ConvertOptions(task=TASK, pooling="flatten", sound=sound)
    convert(open_source(str(embedding)), path, options)
    return path


def recordings(folder: Path, speaker: str, numbers: Sequence[int]) -> list[SoundSample]:
    """The digits of a speaker with these numbers."""
    samples = el.read_samples(f"{folder}/{{label}}_{speaker}_*.wav", TASK)
    return [s for s in samples if isinstance(s, SoundSample) and int(s.path.stem.rsplit("_", 1)[1]) in numbers]


def accuracy(model: el.Model, adapter: str, samples: Sequence[SoundSample]) -> float:
    """The share of held-out digits that are understood with this adapter."""
    said = model.predict([s.path for s in samples], adapter)
    return sum(one == s.label for one, s in zip(said, samples, strict=True)) / len(samples)


def plot(path: Path, tables: dict[str, list[list[float]]], speakers: Sequence[str]) -> None:
    """Both matrices: rows are whose adapter, columns who speaks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tables), figsize=(5.2 * len(tables), 4.6), constrained_layout=True)
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        axis.imshow(table, vmin=0, vmax=1, cmap="viridis")
        axis.set_title(f"{name}: accuracy on held-out digits")
        axis.set_xticks(range(len(speakers)), speakers, rotation=30)
        axis.set_yticks(range(len(speakers)), speakers)
        axis.set_xlabel("who speaks")
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes[0].set_ylabel("whose adapter")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every speaker's adapters, try each on all, print and plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    for name in ("recordings", "embedding", "features"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--speakers", nargs="+", default=None, help="some of them (all)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="the tables are their means (0)")
    parser.add_argument("--head-rate", type=float, default=HEAD_RATE)
    parser.add_argument("--rate", type=float, default=RATE, help="of LoRA")
    parser.add_argument("--choose", action="store_true", help="hold out recordings of those to learn from")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    model = el.Model.open(make_bundle(options.folder / "digits.edgelora", options.embedding, options.features))
    speakers = options.speakers or sorted({path.stem.split("_")[1] for path in options.recordings.glob("*_*_*.wav")})
    learned, asked = CHOOSING if options.choose else (TRAINED, HELD_OUT)
    held_out = {speaker: recordings(options.recordings, speaker, asked) for speaker in speakers}
    tables: dict[str, list[list[float]]] = {}
    for method, lora in METHODS.items():
        rate = options.rate if lora.target_modules is None else options.head_rate
        found = np.zeros((len(options.seeds), len(speakers), len(speakers)))
        for place, seed in enumerate(options.seeds):
            config = el.TrainingConfig(options.epochs, batch_size=10, learning_rate=rate, seed=seed)
            for row, speaker in enumerate(speakers):
                name = f"{speaker}-{method.replace(' ', '-')}"
                samples = recordings(options.recordings, speaker, learned)
                el.train(model, name, samples, lora=lora, config=config, restart=True)
                found[place, row] = [accuracy(model, name, held_out[other]) for other in speakers]
        tables[method] = found.mean(0).tolist()
        width = max(map(len, speakers)) + 2
        print(f"{method}: accuracy; rows are whose adapter, columns who speaks")
        print(" " * width + "".join(f"{s:>{width}}" for s in speakers))
        for speaker, row in zip(speakers, tables[method], strict=True):
            print(f"{speaker:<{width}}" + "".join(f"{value:{width}.3f}" for value in row))
        own, others = split_of(found)
        told = ", ".join(f"{value:.3f}" for value in own)
        print(f"{method}: own speaker {own.mean():.3f} (by seed {told}), others {others.mean():.3f}\n", flush=True)
    plot(options.folder / "spoken_digits.png", tables, speakers)
    print(f"{options.folder / 'spoken_digits.png'} shows them")


def split_of(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of accuracies [seed, adapter, speaker] the means by seed of the adapters' own speakers, and of the others."""
    own = np.eye(found.shape[1], dtype=bool)
    others = found[:, ~own] if found.shape[1] > 1 else np.zeros((len(found), 1))
    return found[:, own].mean(1), others.mean(1)


if __name__ == "__main__":
    main()
