"""Figures of the study `transfer`."""

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS
from experiments.studies.transfer.config import Config
from experiments.studies.transfer.ways import WAYS


def plot_race(config: Config, curves: dict[str, np.ndarray]) -> Figure:
    """Draw test accuracy over the race, each way at the rate that arrives first."""
    made = plotting.figure()
    (axes,) = made.axes
    steps = (1 + np.arange(curves["scratch"].shape[1])) * config.race_every
    for name, method in (("scratch", "none"), ("pretrained", "batch")):
        color, linestyle = METHODS[method].color, METHODS[method].linestyle
        runs = curves[name]
        axes.plot(steps, runs.mean(0), color=color, linestyle=linestyle, label=WAYS[name].label)
        axes.fill_between(steps, runs.min(0), runs.max(0), color=color, alpha=0.2, linewidth=0)
    axes.axhline(config.goal, color=plotting.BLACK, linewidth=0.8)
    axes.set(xlabel="training step on the target", ylabel="test accuracy")
    axes.legend(loc="lower right")
    return made


def plot_ways(tested: dict[str, np.ndarray]) -> Figure:
    """Draw the last test accuracy of every way and seed."""
    made = plotting.figure(width=7.0, height=3.0)
    (axes,) = made.axes
    for i, (name, accuracy) in enumerate(reversed(tested.items())):
        color = plotting.GRAY if name == "scratch" else plotting.BLUE
        axes.plot(accuracy, np.full(len(accuracy), i), "o", color=color, alpha=0.5)
        axes.plot(accuracy.mean(), i, "|", color=plotting.BLACK, markersize=18)
    axes.set_yticks(range(len(tested)), [WAYS[name].label for name in reversed(tested)])
    axes.set(xlabel="test accuracy on the target", ylim=(-0.6, len(tested) - 0.4))
    return made
