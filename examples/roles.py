"""Roles of plays as the users of one language model: an adapter per role, each tried on every role; a table and a plot.

    python examples/roles.py FOLDER --plays input.txt [--roles ROMEO PETRUCHIO …]

`input.txt` is tiny Shakespeare (public domain), in which every turn stands under the name of who speaks. A role learns
from what was said before its turns, and its turns; its name is in neither: who speaks is for the adapter to know. Roles
are those that say the most. As on a device, the past foretells the future: the last third of a role's turns, as the
plays have them, is held out for the table, and the last fifth of those before it tells which epoch's adapter is kept.
Every role has the same number of updates, for some say little at a time and others much. Their number and the learning
rate, of 0.0005 and 0.001, were the best for that fifth of LEONTES. No choice has seen a turn of his third.

Bits per byte of the held-out turns tell how well they are foretold; less is better. How far the own adapter is from the
best of the others is told with its standard error over turns, since turns are few. Every adapter learns what all plays
have in common, so that the others are far better than the base too; what is left between them is the role, its play
included.

Needs edgelora[torch,gguf,text] to make the bundle, and matplotlib.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edgelora as el
from edgelora.language.samples import Answer
from edgelora.language.sampling import GenerationConfig
from edgelora.tasks import objective_for

COUNT = 4  # roles, unless they are named
HELD_OUT = 3  # the last one of so many parts of a role's turns is for the table
VALIDATION = 5  # and of those before, for the choice of an epoch
QUESTION = "What brings you here tonight? Speak, and tell me what you would have of me."
BASE = "base"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Turn:
    """What somebody says."""

    who: str
    said: str


def turns(plays: str) -> Iterator[Turn]:
    """The turns of plays, each under a line with who speaks and a colon."""
    for part in re.split(r"\n\n+", plays.strip()):
        who, _, said = part.partition(":\n")
        if said:
            yield Turn(who, said)


def most_heard(plays: str, count: int) -> list[str]:
    """Those who say the most, in characters."""
    said = Counter[str]()
    for turn in turns(plays):
        said[turn.who] += len(turn.said)
    return [who for who, _ in said.most_common(count)]


def prompt_of(said: str, chats: bool) -> str | tuple[dict[str, str], ...]:
    """What another says, as the model is asked: a message if it chats, else a text before the answer."""
    return ({"role": "user", "content": said},) if chats else f"{said}\n\n"


def answers(plays: str, role: str, chats: bool) -> list[Answer]:
    """The role's turns, each with what another said before it."""
    every = list(turns(plays))
    found: list[Answer] = []
    for before, own in itertools.pairwise(every):
        if own.who == role != before.who:
            said = ({"role": "assistant", "content": own.said},) if chats else own.said
            found.append(Answer(prompt_of(before.said, chats), said, where=f"{role}, turn {len(found) + 1}"))
    return found


def parted(samples: Sequence[Answer], parts: int) -> tuple[Sequence[Answer], Sequence[Answer]]:
    """All but the last one of so many parts of the samples, and the last."""
    kept = len(samples) - len(samples) // parts
    return samples[:kept], samples[kept:]


def learn(model: el.Model, role: str, samples: Sequence[Answer], config: el.TrainingConfig) -> None:
    """Train the role's adapter, unless it has learned just this before."""
    learned, judged = parted(samples, VALIDATION)
    report = el.train(model, name_of(role), learned, judged, lora=el.LoraConfig(r=8, lora_alpha=16), config=config)
    course = " ".join(f"{epoch['eval_bits_per_byte']:.3f}" for epoch in report.history)
    print(f"{role}: {len(learned)} turns learned; {len(judged)} more cost {course}, kept epoch {report.best_epoch}")


def make_bundle(path: Path, base: Path | None) -> Path:
    """Convert the base, or the recipe's: on a desktop, once."""
    if path.exists():
        return path
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import fetch, load_recipe
    from edgelora_tools.sources import open_source

    options = ConvertOptions(task="text-generation", batch_size=1, length=256)
    found = base or fetch(load_recipe("smollm2-135m"), print)
    convert(open_source(str(found), task=options.task), path, options, print)
    return path


def costs(model: el.Model, adapter: str | None, samples: Sequence[Answer]) -> Floats:
    """Bits and bytes of each of these turns, `[turns, 2]`, with the adapter, or with a new one, which is none."""
    chosen = el.new_adapter(model.bundle.manifest, el.LoraConfig()) if adapter is None else model.store.load(adapter)
    found: list[tuple[float, float]] = []
    for one in samples:
        turn = objective_for(model, [one], None, el.TrainingConfig())
        told = el.evaluate(model.bundle, chosen, turn)
        bits = told["loss"] * turn.weight(np.arange(len(turn))) / math.log(2)
        found.append((bits, bits / told["bits_per_byte"]))
    return np.array(found)


def bits_per_byte(turns: Floats) -> float:
    """Of these turns together."""
    bits, size = turns.sum(0)
    return float(bits / size)


def difference(own: Floats, other: Floats) -> tuple[float, float]:
    """Bits per byte of one adapter beyond those of another on the same turns, and the standard error of that.

    It is a ratio of sums over turns, whose error is that of its linearization (Cochran, Sampling Techniques).
    """
    beyond = bits_per_byte(own) - bits_per_byte(other)
    size = own[:, 1]
    apart = own[:, 0] - other[:, 0] - beyond * size
    return beyond, float(np.sqrt(len(size) / (len(size) - 1) * (apart**2).sum()) / size.sum())


def plot(path: Path, table: Sequence[Sequence[float]], roles: Sequence[str]) -> None:
    """The matrix: rows are whose adapter, columns who speaks; darker is better beside the own, the best is bold."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [BASE, *roles]
    values = np.array(table)
    beyond = values - np.diag(values[1:])
    least, most = float(beyond[1:].min()), max(float(beyond[1:].max()), 1e-3)  # the base is beyond all
    figure, axis = plt.subplots(figsize=(1.7 * len(roles) + 2.2, 0.5 * len(names) + 1.3), constrained_layout=True)
    axis.imshow(beyond, cmap="Blues_r", vmin=least, vmax=most, aspect="auto")
    axis.set_title("bits per byte of held-out turns")
    axis.set_xticks(range(len(roles)), roles)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("who speaks")
    axis.set_ylabel("whose adapter")
    for (i, j), value in np.ndenumerate(values):
        weight = "bold" if value == values[:, j].min() else "normal"
        color = "white" if beyond[i, j] < (least + most) / 2 else "black"
        axis.text(j, i, f"{value:.3f}", ha="center", va="center", weight=weight, color=color)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train an adapter for each role, try each on all, print, plot, and let two of them answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--plays", type=Path, required=True, help="input.txt of tiny Shakespeare")
    parser.add_argument("--base", type=Path, help="a Hugging Face directory or GGUF file (SmolLM2-135M)")
    parser.add_argument("--roles", nargs="+", help=f"whose turns are learned (the {COUNT} who say the most)")
    parser.add_argument("--updates", type=int, default=120, help="the same for every role (%(default)s)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate (%(default)s)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    model = el.Model.open(make_bundle(options.folder / "roles.edgelora", options.base))
    language = model.bundle.manifest.language
    chats = language is not None and language.chat_template is not None
    plays = options.plays.read_text(encoding="utf-8")
    roles: Sequence[str] = options.roles or most_heard(plays, COUNT)
    config = el.TrainingConfig(
        num_train_epochs=options.updates,
        max_steps=options.updates,
        batch_size=4,
        learning_rate=options.rate,
        truncate=True,
        micro_batch_size=1,
    )
    held_out: dict[str, Sequence[Answer]] = {}
    for role in roles:
        samples = answers(plays, role, chats)
        before, held_out[role] = parted(samples, HELD_OUT)
        if min(len(held_out[role]), len(before) // VALIDATION) < 2:
            parser.error(f"{role} has {len(samples)} turns in {options.plays}: too few to learn from")
        learn(model, role, before, config)
    found = [[costs(model, who and name_of(who), held_out[role]) for role in roles] for who in (None, *roles)]
    table = [[bits_per_byte(turns) for turns in row] for row in found]
    width = max(map(len, (BASE, *roles))) + 2
    print("\nbits per byte of held-out turns; rows are whose adapter, columns who speaks")
    print(" " * width + "".join(f"{role:>{width}}" for role in roles))
    for who, row in zip((BASE, *roles), table, strict=True):
        print(f"{who:<{width}}" + "".join(f"{value:{width}.3f}" for value in row))
    wins = sum(row[j] == min(one[j] for one in table) for j, row in enumerate(table[1:]))
    print(f"own adapter is the best for {wins} of {len(roles)} roles")
    for j, role in enumerate(roles):
        others = [i for i in range(len(roles)) if i != j]
        best = min(others, key=lambda i: table[1 + i][j], default=None)
        if best is not None:
            beyond, error = difference(found[1 + j][j], found[1 + best][j])
            print(f"{role}: {beyond:+.3f} ± {error:.3f} to the best other adapter, {roles[best]}'s")
    print()
    plot(options.folder / "roles.png", table, roles)
    drawn = GenerationConfig(max_new_tokens=48, do_sample=True, temperature=0.7, top_p=0.9, seed=1)
    speakers = (None, *map(name_of, roles[:2]))
    told = model.generate([prompt_of(QUESTION, chats)] * len(speakers), adapters=speakers, config=drawn)
    print(f"asked: {QUESTION}")
    for who, one in zip((BASE, *roles), told, strict=False):
        print(f"\n{who}:\n{one.text.strip()}")
    print(f"\n{options.folder / 'roles.png'} shows the table")


def name_of(role: str) -> str:
    """A role's adapter in the store."""
    return role.lower().replace(" ", "-")


if __name__ == "__main__":
    main()
