"""A measure on held-out data by epoch, a line for each adapter: the plots of the examples on pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

COLOURS = ("#777777", "#0072b2", "#d55e00")


def plot_curves(curves: Mapping[str, Sequence[float]], measure: str, path: Path) -> None:
    """The values of each adapter after epochs 1, 2, …, from 0 to 1, in a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.2))
    for (name, curve), colour in zip(curves.items(), COLOURS[: len(curves)], strict=True):
        axis.plot(range(1, len(curve) + 1), curve, "o-", color=colour, label=f"{name}: {curve[-1]:.3f}")
    axis.set(xlabel="epoch", ylabel=measure, ylim=(0, 1))
    axis.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")
