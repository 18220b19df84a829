"""Figures of the study `inception`."""

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS, LineStyle
from experiments.studies.inception.config import Config

CHANGES = {
    "without_rate": "own rate, not 5 times",
    "with_dropout": "dropout kept",
    "with_l2": "L2 not reduced",
    "slow_decay": "slow decay",
    "with_lrn": "LRN kept",
    "fixed_batches": "fixed batches",
    "strong_distortion": "strong distortion",
}
LINES = {
    "inception": METHODS["none"]._replace(label="Inception"),
    "baseline": METHODS["batch"]._replace(label="BN-Baseline"),
    "x5": LineStyle(plotting.GREEN, ":", "^", "BN-x5"),
    "x30": LineStyle(plotting.PURPLE, "-.", "P", "BN-x30"),
    "plain_x5": LineStyle(plotting.BLACK, "-.", "X", "Inception, rate x5"),
    "sigmoid_with": METHODS["batch"]._replace(label="BN-x5-Sigmoid"),
    "sigmoid_without": METHODS["none"]._replace(label="Inception, sigmoid"),
}


def plot_variants(config: Config, accuracy: dict[str, np.ndarray]) -> Figure:
    """Plot accuracy against steps, in two panels."""
    fig = plotting.figure(2, width=3.9, height=3.3)
    steps = np.arange(config.steps // config.watch_every + 1) * config.watch_every
    panels = [
        ("ReLU", ("inception", "baseline", "x5", "x30")),
        ("Without BN at a high rate; sigmoids", ("plain_x5", "sigmoid_with", "sigmoid_without")),
    ]
    for axes, (title, names) in zip(fig.axes, panels, strict=True):
        for name in names:
            plotting.band(axes, steps, accuracy[name].T, LINES[name])
        axes.set(title=title, xlabel="training steps", ylabel="test accuracy")
        axes.sharey(fig.axes[0])
    target = accuracy["inception"].max(1).mean()
    fig.axes[0].axhline(target, color=plotting.GRAY, linewidth=0.8, label="Inception's best")
    for axes in fig.axes:
        plotting.legend_below(axes)
    return fig


def plot_changes(differences: dict[str, np.ndarray]) -> Figure:
    """Plot the gain or loss from undoing each change: seeds, mean and interval."""
    fig = plotting.figure(width=5.6, height=3.2)
    (axes,) = fig.axes
    points = 100 * np.stack(list(differences.values()))
    rows = np.arange(len(points))
    axes.axvline(0, color=plotting.BLACK, linewidth=0.8)
    plotting.bars(
        axes, rows, points, METHODS["batch"]._replace(label="mean of seeds"), horizontal=True
    )
    axes.plot(points, rows + 0.25, ".", color=plotting.GRAY)
    axes.lines[-1].set_label("a seed")
    axes.set_yticks(range(len(differences)), [CHANGES[name] for name in differences])
    axes.invert_yaxis()
    axes.set(xlabel="best test accuracy, one change taken back - BN-x5's (points)")
    plotting.share_legend(fig)
    return fig
