"""Figures of the study `transfer`."""

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS
from experiments.studies.transfer.config import Config
from experiments.studies.transfer.ways import WAYS


def plot_race(config: Config, curves: dict[str, np.ndarray]) -> Figure:
    """Plot test accuracy over the race, each way at the rate that reaches the goal first."""
    fig = plotting.figure()
    (axes,) = fig.axes
    steps = (1 + np.arange(curves["scratch"].shape[1])) * config.race_every
    for name, method in (("scratch", "none"), ("pretrained", "batch")):
        style = METHODS[method]._replace(label=WAYS[name].label)
        plotting.band(axes, steps, curves[name].T, style)
    axes.axhline(config.goal, color=plotting.BLACK, linestyle=":", linewidth=1, label="goal")
    axes.set(xlabel="training step on the target", ylabel="test accuracy")
    plotting.share_legend(fig)
    return fig


def plot_ways(tested: dict[str, np.ndarray]) -> Figure:
    """Plot the last test accuracy of every way and seed, and the means."""
    fig = plotting.figure(width=6.0, height=2.8)
    (axes,) = fig.axes
    rows, runs = np.arange(len(tested)), np.stack(list(tested.values()))
    style = METHODS["batch"]._replace(label="mean of seeds")
    plotting.bars(axes, rows, runs, style, horizontal=True)
    axes.plot(runs, rows + 0.22, ".", color=plotting.GRAY)
    axes.lines[-1].set_label("a seed")
    axes.set_yticks(rows, [WAYS[name].label for name in tested])
    axes.set(xlabel="test accuracy on the target", ylim=(-0.5, len(tested) - 0.3))
    axes.invert_yaxis()
    plotting.share_legend(fig)
    return fig
