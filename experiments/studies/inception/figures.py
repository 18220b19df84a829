"""Figures of the study `inception`."""

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS, LineStyle
from experiments.stats import estimates
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
    """Draw the accuracy against steps, in two panels."""
    made = plotting.figure(2)
    steps = np.arange(config.steps // config.watch_every + 1) * config.watch_every
    panels = [
        ("with ReLU", ("inception", "baseline", "x5", "x30")),
        ("at a high rate, and with sigmoids", ("plain_x5", "sigmoid_with", "sigmoid_without")),
    ]
    for axes, (title, names) in zip(made.axes, panels, strict=True):
        for name in names:
            color, linestyle, _, label = LINES[name]
            y = accuracy[name]
            axes.plot(steps, y.mean(0), color=color, linestyle=linestyle, label=label)
            axes.fill_between(steps, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel="training steps", ylabel="test accuracy")
        axes.sharey(made.axes[0])
    target = accuracy["inception"].max(1).mean()
    made.axes[0].axhline(target, color=plotting.GRAY, linewidth=0.8, label="Inception's best")
    for axes in made.axes:
        axes.legend()
    return made


def plot_changes(differences: dict[str, np.ndarray]) -> Figure:
    """Draw the gain or loss of each change left out: seeds, mean and interval."""
    made = plotting.figure(width=6.4)
    (axes,) = made.axes
    for row, difference in enumerate(differences.values()):
        points = 100 * difference
        found = estimates.mean(points)
        axes.plot([found.low, found.high], [row, row], color=plotting.BLUE)
        axes.plot(points, np.full(len(points), row + 0.22), ".", color=plotting.GRAY)
        axes.plot(found.value, row, "o", color=plotting.BLUE)
    axes.axvline(0, color=plotting.BLACK, linewidth=0.8)
    axes.set_yticks(range(len(differences)), [CHANGES[name] for name in differences])
    axes.invert_yaxis()
    axes.set(
        title="BN-x5 with one change taken back", xlabel="best test accuracy - BN-x5's (points)"
    )
    return made
