"""Figures of `regularization`, from what it found alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.plotting import METHODS, figure
from experiments.stats import estimates

Found = dict[str, np.ndarray]
X_LABELS = {
    "dropout": "share of units dropped",
    "l1": "strength of L1",
    "l2": "strength of L2",
    "flips": "share of training labels flipped",
    "width": "units in a hidden layer",
    "statistics": "examples that share statistics",
}


class Line(NamedTuple):
    """What was found at each of some values, as a line of a figure."""

    values: tuple[float, ...]
    found: Found
    label: str


def gap(found: Found) -> np.ndarray:
    """Compute training - test accuracy."""
    return found["train"] - found["test"]


def plot_lines(whats: Sequence[str], lines: dict[tuple[str, str], Line]) -> Figure:
    """Plot test accuracy and gap against what is swept, a column for each."""
    made = figure(len(whats), 2, width=3.4, height=2.7)
    rows = {"test accuracy": made.axes[: len(whats)], "training - test": made.axes[len(whats) :]}
    for (what, method), (values, found, label) in lines.items():
        if what not in whats:
            continue
        style = METHODS[method]._replace(label=label)._asdict()
        for (name, panels), seen in zip(rows.items(), (found["test"], gap(found)), strict=True):
            axes, guesses = panels[whats.index(what)], [estimates.mean(row) for row in seen]
            center = np.array([one.value for one in guesses])
            ends = np.array([[one.low, one.high] for one in guesses]).T
            # Values as words: at equal distances, and 0 has its place beside powers of ten.
            axes.errorbar(
                [f"{x:g}" for x in values], center, abs(ends - center[None]), capsize=2, **style
            )
            axes.set_xlabel(X_LABELS[what])
            panels[0].set_ylabel(name)
            axes.legend(fontsize=8)
    return made


def plot_combined(names: Sequence[str], found: dict[str, Found]) -> Figure:
    """Plot test accuracy and gap of every combination of regularizers, without and with BN."""
    made = figure(2, width=4.4, height=3.6)
    kinds = {"test accuracy": lambda rows: rows["test"], "training - test accuracy": gap}
    for axes, (label, kind) in zip(made.axes, kinds.items(), strict=True):
        for shift, (method, rows) in zip((-0.12, 0.12), found.items(), strict=True):
            style, guesses = METHODS[method], [estimates.mean(row) for row in kind(rows)]
            center = np.array([one.value for one in guesses])
            ends = np.array([[one.low, one.high] for one in guesses]).T
            axes.errorbar(
                center,
                np.arange(len(names)) + shift,
                xerr=abs(ends - center[None]),
                color=style.color,
                marker=style.marker,
                linestyle="none",
                capsize=2,
                label=style.label,
            )
        axes.set_yticks(range(len(names)), names if axes is made.axes[0] else [""] * len(names))
        axes.set_xlabel(label)
        axes.invert_yaxis()
    made.axes[0].legend(fontsize=8)
    return made
