"""Figures of the study `regularization`, drawn from its results alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.plotting import METHODS, bars, figure, share_legend

Results = dict[str, np.ndarray]
X_LABELS = {
    "dropout": "share of units dropped",
    "l1": "strength of L1",
    "l2": "strength of L2",
    "flips": "share of training labels flipped",
    "width": "units in a hidden layer",
    "statistics": "examples that share statistics",
}


TITLES = {
    "dropout": "Dropout",
    "l1": "L1",
    "l2": "L2",
    "flips": "Wrong labels",
    "width": "Width",
    "statistics": "Shared statistics",
}


class Line(NamedTuple):
    """Results at several values of an option, drawn as one line."""

    values: tuple[float, ...]
    results: Results
    label: str


def gap(results: Results) -> np.ndarray:
    """Compute training minus test accuracy."""
    return results["train"] - results["test"]


def plot_lines(whats: Sequence[str], lines: dict[tuple[str, str], Line]) -> Figure:
    """Plot test accuracy and gap, with one column for each swept option."""
    fig = figure(len(whats), 2, width=3.1, height=2.5)
    rows = {"test accuracy": fig.axes[: len(whats)], "training - test": fig.axes[len(whats) :]}
    for (what, method), (values, results, label) in lines.items():
        if what not in whats:
            continue
        # Equally spaced, so that 0 fits beside powers of ten.
        every = sorted({x for (of, _), line in lines.items() if of == what for x in line.values})
        side = {"none": -0.06, "batch": 0.06}.get(method, 0)  # Keep the bars apart.
        at = [every.index(x) + side for x in values]
        for (name, panels), runs in zip(rows.items(), (results["test"], gap(results)), strict=True):
            axes = panels[whats.index(what)]
            bars(axes, at, runs, METHODS[method]._replace(label=label), joined=True)
            axes.set_xticks(range(len(every)), [f"{x:g}" for x in every])
            axes.set(title=f"{TITLES[what]}: {name}", xlabel=X_LABELS[what])
            panels[0].set_ylabel(name)
    share_legend(fig)
    return fig


def plot_combined(names: Sequence[str], results: dict[str, Results]) -> Figure:
    """Plot test accuracy and gap of every combination of regularizers, without and with BN."""
    fig = figure(2, width=3.8, height=3.3)
    kinds = {"test accuracy": lambda rows: rows["test"], "training - test accuracy": gap}
    for axes, (label, kind) in zip(fig.axes, kinds.items(), strict=True):
        for shift, (method, rows) in zip((-0.12, 0.12), results.items(), strict=True):
            bars(axes, np.arange(len(names)) + shift, kind(rows), method, horizontal=True)
        axes.set_yticks(range(len(names)), names if axes is fig.axes[0] else [""] * len(names))
        axes.set(title=label.capitalize(), xlabel=label)
        axes.invert_yaxis()
    share_legend(fig)
    return fig
