"""Two users of one device, from Python: train, predict with an adapter per call and per row, roll back.

    python examples/python_api.py [FOLDER]

Needs edgelora[convert], to make the bundle. Everything after `Model.open` needs only what a device has.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import edgelora as el
from edgelora.data import TextSample

DATA = Path(__file__).parent / "two_people"
USERS = ("early_bird", "night_owl")
WORDS = ["make it cosy", "the usual", "too much"]


def make_bundle(path: Path) -> Path:
    """Convert the recipe's model: on a desktop, once."""
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import fetch, load_recipe
    from edgelora_tools.sources import open_source

    recipe = load_recipe("minilm-l3")
    source = open_source(str(fetch(recipe, print)))
    convert(source, path, ConvertOptions(recipe.task, recipe.pooling, target_modules="all-linear", name=recipe.name))
    return path


def main(folder: Path) -> None:
    """Train both users, switch between them, train one further and take that back."""
    model = el.Model.open(make_bundle(folder / "home.edgelora"))
    task = model.bundle.manifest.task
    config = el.TrainingConfig(num_train_epochs=4, batch_size=16, learning_rate=3e-3)
    lora = el.LoraConfig(r=4, lora_alpha=8, target_modules=("query", "value", "output.dense"))
    for user in USERS:
        report = el.train(model, user, el.read_samples(DATA / f"{user}.train.jsonl", task), lora=lora, config=config)
        last = report.history[-1]["train_loss"]
        print(f"{user}: version {report.version}, {report.steps} steps, loss {last:.3f}")

    for user in USERS:
        print(f"{user}: {dict(zip(WORDS, model.predict(WORDS, adapter=user), strict=True))}")
    mixed = model.predict(["the usual", "the usual"], adapters=list(USERS))
    print(f"one call, an adapter per row: {mixed}")
    scores = model.predict_proba(["the usual"], adapter="early_bird")[0]
    print(f"surest: {max(zip(scores.tolist(), model.labels('early_bird'), strict=True))[1]}")

    garden = [TextSample(text, "garden_water") for text in ("water the plants", "sprinklers on", "hose the lawn")]
    samples = [*el.read_samples(DATA / "early_bird.train.jsonl", task), *garden]
    further = el.train(model, "early_bird", samples, config=el.TrainingConfig(num_train_epochs=2, batch_size=16))
    print(f"early_bird: version {further.version} knows {len(model.labels('early_bird'))} classes")
    print(
        f"early_bird: back to version {model.store.rollback('early_bird')}, {len(model.labels('early_bird'))} classes"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
