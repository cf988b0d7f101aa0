"""A loss of your own, through the cotangent graph: numpy on the host, forward and backward from the bundle.

    python examples/own_loss.py [FOLDER]

The loss: the cosine of two sentences should be 1 where one person means the same by them, and 0 where not.
It compares every pair of a batch, so no loss of a bundle expresses it; its gradient is four lines of numpy.
Needs edgelora[convert], to make the bundle. The loop needs only what a device has.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import edgelora as el
from edgelora.data import TextSample
from edgelora.optimizers import AdamW, clip_by_global_norm

DATA = Path(__file__).parent / "two_people"
OUTPUT = "461"  # the source's pooled output, [batch, 384]; `edgelora info` lists the outputs of a bundle
STEPS, BATCH, LEARNING_RATE = 30, 32, 3e-3


def make_bundle(path: Path) -> Path:
    """Convert the recipe's model, with its outputs as they are: on a desktop, once."""
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import fetch, load_recipe
    from edgelora_tools.sources import open_source

    recipe = load_recipe("minilm-l3")
    options = ConvertOptions(task="feature-extraction", output=OUTPUT, target_modules=("query", "value"))
    convert(open_source(str(fetch(recipe, print))), path, options)
    return path


def read(part: str) -> tuple[list[str], np.ndarray]:
    """A person's sentences and the number of what each means."""
    path = DATA / f"early_bird.{part}.jsonl"
    samples = [s for s in el.read_samples(path, "sequence-classification") if isinstance(s, TextSample)]
    meanings = sorted({s.label for s in samples})
    return [s.text for s in samples], np.array([meanings.index(s.label) for s in samples])


def cosine_loss(e: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """L = mean_ij (<u_i, u_j> − t_ij)², u_i = e_i/|e_i|, and dL/de; e is [batch, features]."""
    target = (labels[:, None] == labels).astype(np.float32)
    norm = np.linalg.norm(e, axis=1, keepdims=True)
    u = e / norm
    gap = u @ u.T - target
    du = 4 * gap @ u / gap.size  # gap is symmetric: u_i is in row i and in column i
    de = (du - u * (u * du).sum(1, keepdims=True)) / norm
    return float((gap**2).mean()), de.astype(np.float32)


def nearest_mean_accuracy(model: el.Model, adapter: el.Adapter | None) -> float:
    """Held-out sentences, each given the label whose mean training embedding is most similar."""
    (train, train_labels), (test, test_labels) = read("train"), read("test")
    e, f = (model.outputs(texts, adapter)[OUTPUT] for texts in (train, test))
    u = e / np.linalg.norm(e, axis=1, keepdims=True)
    means = np.stack([u[train_labels == k].mean(0) for k in range(train_labels.max() + 1)])
    return float(((f @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1) == test_labels).mean())


def main(folder: Path) -> None:
    """Convert, train with the loss above, compare, save."""
    model = el.Model.open(make_bundle(folder / "features.edgelora"))
    bundle, manifest = model.bundle, model.bundle.manifest
    texts, labels = read("train")
    adapter = el.new_adapter(manifest, el.LoraConfig(r=8, lora_alpha=16))
    record = bundle.training("cotangent", dropout=False)
    backward = bundle.graph(record.file)
    parameters = {name: tensor.copy() for name, tensor in adapter.tensors.items()}
    optimizer = AdamW()
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        rows = rng.permutation(len(texts))[:BATCH]
        feeds = {**model.encode([texts[i] for i in rows]), **adapter.with_tensors(parameters).feeds(manifest)}
        loss, de = cosine_loss(bundle.forward.run(feeds)[OUTPUT], labels[rows])
        grads = backward.run({**feeds, f"cotangent.{OUTPUT}": de}, [f"grad.{name}" for name in parameters])
        gradients = {name: grads[f"grad.{name}"].copy() for name in parameters}
        for name in parameters:  # the graph was fed B' = s·B, so dL/dB = s·dL/dB'
            if name.endswith(".lora_B"):
                gradients[name] *= np.float32(adapter.config.scale(name.removesuffix(".lora_B")))
        clip_by_global_norm(gradients, 1.0)
        optimizer.step(parameters, gradients, LEARNING_RATE)
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step + 1:3d}  loss {loss:.4f}")
    trained = adapter.with_tensors(parameters)
    before, after = nearest_mean_accuracy(model, None), nearest_mean_accuracy(model, trained)
    print(f"held-out accuracy of the nearest mean: {before:.3f} before, {after:.3f} after")
    print(f"saved as version {model.store.save('early_bird', trained)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
