"""Roles of plays as the users of one language model: an adapter per role, each tried on every role; a table and a plot.

    python examples/roles.py FOLDER --plays input.txt [--roles ROMEO PETRUCHIO …]

`input.txt` is tiny Shakespeare (public domain), in which every turn stands under the name of who speaks. A role learns
from what was said before its turns, and its turns; its name is in neither: who speaks is for the adapter to know. Roles
are those that say the most. Every role has the same number of updates, for some say little at a time and others much.

Held out are blocks all over a role's part, for a part changes as its play goes on, and the question is who speaks and
not what happens: of every 20 of its turns 6 that follow each other, at a place that is drawn. The turn before a block
and the one after it are not learned either, so that no held-out turn continues what was learned. (The file does not
tell scenes.) Of what is left, blocks of 4 in 20 are held out likewise for choices: they tell which epoch's adapter is
kept, and GLOUCESTER's told the rate and the updates, 60 at 0.001 and not 120 at 0.0005 (`--choose` stops there). No
choice sees a turn of the table. `--held-out last` holds out the last third in time, and the last fifth of what is
before it: that asks what an adapter knows of a role's future.

Bits per byte of the held-out turns tell how well they are foretold; less is better. How far the own adapter is from the
best of the others is told with its standard error, by drawing the turns again, since turns are few. Every adapter
learns what all plays have in common, so that the others are far better than the base too; what is left between them is
the role, its play included.

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
EVERY = 20  # so many turns of a role have one block that is held out
HELD_OUT = 3  # one of so many parts of a role's turns is for the table
VALIDATION = 5  # and of what is left, for choices
DRAWS = 2000  # of turns, for an error
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


def parted(
    samples: Sequence[Answer], parts: int, rng: np.random.Generator | None
) -> tuple[Sequence[Answer], Sequence[Answer]]:
    """All but one of so many parts of the samples, and that one: the last, or blocks, beside which none is kept."""
    count, size = len(samples), EVERY // parts
    if rng is None:
        return samples[: count - count // parts], samples[count - count // parts :]
    held = np.zeros(count, bool)
    for start in range(0, count, EVERY):
        first = start + rng.integers(EVERY - size + 1)
        held[first : first + size] = True
    beside = held.copy()
    beside[1:] |= held[:-1]
    beside[:-1] |= held[1:]
    return list(itertools.compress(samples, ~beside)), list(itertools.compress(samples, held))


def learn(
    model: el.Model, name: str, learned: Sequence[Answer], judged: Sequence[Answer], config: el.TrainingConfig
) -> None:
    """Train an adapter, unless it has learned just this before."""
    report = el.train(model, name, learned, judged, lora=el.LoraConfig(r=8, lora_alpha=16), config=config)
    course = " ".join(f"{epoch['eval_bits_per_byte']:.4f}" for epoch in report.history)
    print(f"{name}: {len(learned)} turns learned; {len(judged)} more cost {course}, kept epoch {report.best_epoch}")


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
    """Bits per byte of one adapter beyond those of another on the same turns, and its standard error (bootstrap)."""
    drawn = np.random.default_rng(0).integers(0, len(own), (DRAWS, len(own)))
    bits, size = np.moveaxis(own[drawn].sum(1), 1, 0)
    beyond = (bits - other[drawn, 0].sum(1)) / size
    return bits_per_byte(own) - bits_per_byte(other), float(beyond.std())


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
    parser.add_argument("--updates", type=int, default=60, help="the same for every role (%(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (%(default)s)")
    parser.add_argument("--held-out", choices=("blocks", "last"), default="blocks", help="which turns (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="where the blocks are (%(default)s)")
    parser.add_argument("--choose", action="store_true", help="train and tell the turns for choices, not the table")
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
    split = "last" if options.held_out == "last" else f"blocks{options.seed}"
    names = {role: f"{name_of(role)}.{split}.{options.updates}x{options.rate:g}" for role in roles}
    chosen: dict[str, tuple[Sequence[Answer], Sequence[Answer]]] = {}
    held_out: dict[str, Sequence[Answer]] = {}
    for role in roles:
        rng = np.random.default_rng(options.seed) if options.held_out == "blocks" else None
        left, held_out[role] = parted(answers(plays, role, chats), HELD_OUT, rng)
        chosen[role] = parted(left, VALIDATION, rng)
        if min(map(len, (*chosen[role], held_out[role]))) < 2:
            parser.error(f"{role} says too little in {options.plays} to learn from: choose others (--roles)")
    for role, (learned, judged) in chosen.items():
        learn(model, names[role], learned, judged, config)
    if options.choose:
        return
    found = [[costs(model, who and names[who], held_out[role]) for role in roles] for who in (None, *roles)]
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
            apart = f"{beyond:+.4f} ± {error:.4f} to the best other adapter, {roles[best]}'s"
            print(f"{role}: {apart}, on {len(held_out[role])} turns")
    print()
    plot(options.folder / "roles.png", table, roles)
    drawn = GenerationConfig(max_new_tokens=48, do_sample=True, temperature=0.7, top_p=0.9, seed=1)
    speakers = (None, *(names[role] for role in roles[:2]))
    told = model.generate([prompt_of(QUESTION, chats)] * len(speakers), adapters=speakers, config=drawn)
    print(f"asked: {QUESTION}")
    for who, one in zip((BASE, *roles), told, strict=False):
        print(f"\n{who}:\n{one.text.strip()}")
    print(f"\n{options.folder / 'roles.png'} shows the table")


def name_of(role: str) -> str:
    """A role's name as the store takes one."""
    return role.lower().replace(" ", "-")


if __name__ == "__main__":
    main()
