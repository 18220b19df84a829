"""Figures of the study `whitening`."""

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.studies.whitening.config import Config


def plot_time(config: Config, taken: dict[str, np.ndarray]) -> Figure:
    """Draw milliseconds against d."""
    made = plotting.figure()
    (axes,) = made.axes
    for name, method, label in (("zca", "whitened", "ZCA"), ("bn", "batch", "BN")):
        plotting.band(axes, np.array(config.features), 1e3 * taken[name].T, method)
        axes.lines[-1].set(label=label, marker="o")
    axes.set(xlabel="features, d", ylabel="time of a forward pass, ms", xscale="log", yscale="log")
    axes.set_xticks(config.features, [str(d) for d in config.features])
    axes.minorticks_off()
    axes.legend()
    return made


def plot_outside(found: dict[str, np.ndarray]) -> Figure:
    """Draw b, |W| and the loss over training."""
    made = plotting.figure(3, width=3.7)
    panels = ("bias", 0, "b"), ("scale", 0, "|W|"), ("scale", 1, "loss of the network with W")
    for axes, (key, column, label) in zip(made.axes, panels, strict=True):
        for name, method in (("outside", "none"), ("inside", "batch")):
            runs = found[f"{key}_{name}"][..., column].T
            plotting.band(axes, np.arange(len(runs)), runs, method)
        axes.set(xlabel="steps", ylabel=label)
    made.axes[0].legend(made.axes[0].lines, ["statistics as constants", "BN inside the gradient"])
    return made


def plot_descent(losses: dict[str, np.ndarray], target: float) -> Figure:
    """Draw the training loss over the steps, each kind of input at its best rate."""
    made = plotting.figure()
    (axes,) = made.axes
    for kind, runs in losses.items():
        plotting.band(axes, np.arange(1, runs.shape[1]), runs[:, 1:].T, kind)
    axes.axhline(target, color=plotting.BLACK, linestyle=":", linewidth=1)
    axes.set(xlabel="steps of descent", ylabel="training loss, nats", xscale="log", yscale="log")
    axes.legend()
    return made
