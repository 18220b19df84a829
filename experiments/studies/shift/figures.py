"""Figures of the study `shift`, drawn from its parts alone."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import BLACK, GRAY, METHODS, ORANGE, LineStyle, band
from experiments.stats.estimates import pretty

Parts = Mapping[str, Mapping[str, np.ndarray]]
Settled = Mapping[str, tuple[np.ndarray, np.ndarray]]  # Steps, (seeds, steps, units).

STYLES = {
    **METHODS,
    "full": LineStyle(BLACK, "-", "o", "full batch"),
    "mini": METHODS["none"]._replace(label="mini-batches"),
    "sigmoid": METHODS["none"],
    "sigmoid_bn": METHODS["batch"],
    "sigmoid_dropout": LineStyle(ORANGE, "-.", "D", "dropout"),
    "sigmoid_l2": LineStyle(GRAY, ":", "X", "L2"),
    "relu": METHODS["none"],
    "relu_bn": METHODS["batch"],
}


def describe_means(by_name: Mapping[str, ArrayLike]) -> str:
    """Format the mean over runs of each, as in "without BN .61, with BN .2"."""
    means = {name: pretty(float(np.mean(np.asarray(runs)))) for name, runs in by_name.items()}
    return ", ".join(f"{STYLES[name].label} {mean}" for name, mean in means.items())


def plot_shift(parts: Parts, medians: Settled, every: int) -> Figure:
    """Plot both measures of shift over training, and the first one for two batch sizes.

    Args:
      parts: measurements of training on all examples, by norm.
      medians: medians of the last hidden layer's inputs in that training, and in the one on few
        examples.
      every: steps between evaluations.
    """
    fig = plotting.figure(3, width=3.4, height=3.2)
    drift, gradient, cause = fig.axes
    for name, (steps, settled) in medians.items():
        away = np.abs(settled - settled[:, :1]).mean(-1)
        band(drift if name in parts else cause, steps, away.T, STYLES[name])
    for axes in (drift, cause):
        axes.set(ylabel="distance of the median", ylim=(0, None))
    drift.set_title("Inputs of the last hidden layer")
    cause.set_title("Without BN, few examples")
    over_training(gradient, parts, "gradient_shift", every)
    gradient.set(title="Gradients, as the layers before move", ylabel="relative change")
    label_steps(fig)
    return fig


def plot_landscape(parts: Parts, every: int) -> Figure:
    """Plot over training how loss and gradient vary along a step."""
    fig = plotting.figure(2, width=3.8, height=3.2)
    loss, gradient = fig.axes
    over_training(loss, parts, "loss_range", every)
    loss.set(title="Loss along a step", ylabel="range (nats)")
    over_training(gradient, parts, "gradient_change", every)
    gradient.set(title="Gradient along a step", ylabel="largest relative change")
    gradient.set(yscale="linear", ylim=(0, None))
    label_steps(fig)
    return fig


def plot_depth(depths: Sequence[int], accuracy: Mapping[str, np.ndarray]) -> Figure:
    """Plot accuracy against depth."""
    fig = plotting.figure(2, width=3.8, height=3.3)
    for axes, activation in zip(fig.axes, ("sigmoid", "relu"), strict=True):
        for name, by_depth in accuracy.items():
            if name.startswith(activation):
                band(axes, depths, by_depth, STYLES[name])
        axes.set(title=METHODS[activation].label, ylim=(0, 1), xticks=list(depths))
        axes.set(xlabel="hidden layers", ylabel="test accuracy")
        plotting.legend_below(axes)
    return fig


def plot_untrained(parts: Parts) -> Figure:
    """Plot the effects of three changes of the weights, layer by layer."""
    fig = plotting.figure(3, width=3.3)
    titles = {
        "nudged": ("First weights moved by 1 %", "relative change of W x"),
        "outliers": ("1 % of weights ten times as large", "deviation with / without them"),
        "large": ("All weights 1.5 times He's", "deviation of the inputs"),
    }
    for axes, (change, (title, label)) in zip(fig.axes, titles.items(), strict=True):
        for norm, part in parts.items():
            runs = part[change].T
            band(axes, np.arange(1, len(runs) + 1), runs, STYLES[norm], geometric=True)
        axes.set(title=title, xlabel="layer", ylabel=label, yscale="log")
    plotting.share_legend(fig)
    return fig


def over_training(axes: Axes, parts: Parts, measure: str, every: int) -> None:
    """Plot a measure over training."""
    for name, part in parts.items():
        runs = part[measure].T
        band(axes, every * np.arange(len(runs)), runs, STYLES[name], geometric=True)
    plotting.log_scale(axes, "y", *(part[measure] for part in parts.values()))


def label_steps(fig: Figure) -> None:
    """Label the axis of steps and add legends."""
    for axes in fig.axes:
        axes.set(xlabel="training steps")
        plotting.legend_below(axes, columns=2)
