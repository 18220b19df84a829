"""Figures of the study `imagenet`."""

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS, LineStyle
from experiments.studies.imagenet.results import LABELS, Trained

LINES = {
    "inception": METHODS["none"]._replace(label=LABELS["inception"]),
    "bn_baseline": METHODS["batch"]._replace(label=LABELS["bn_baseline"]),
    "bn_x5": LineStyle(plotting.GREEN, ":", "^", LABELS["bn_x5"]),
    "bn_x30": LineStyle(plotting.PURPLE, "-.", "P", LABELS["bn_x30"]),
    "bn_x5_sigmoid": LineStyle(plotting.ORANGE, "-", "D", LABELS["bn_x5_sigmoid"]),
    "inception_x5": LineStyle(plotting.BLACK, "-.", "X", LABELS["inception_x5"]),
    "sigmoid_without_bn": LineStyle(plotting.GRAY, "--", "v", LABELS["sigmoid_without_bn"]),
}


def plot_accuracy(trained: dict[str, list[Trained]]) -> Figure:
    """Plot accuracy against training steps: the paper's Fig. 2."""
    fig = plotting.figure(width=5.6, height=3.8)
    (axes,) = fig.axes
    for name, networks in trained.items():
        curves = np.stack([network.accuracy for network in networks], axis=1)
        plotting.band(axes, networks[0].steps, curves, LINES[name])
    if "inception" in trained:
        goal = np.mean([network.accuracy.max() for network in trained["inception"]])
        label = f"best of {LABELS['inception']}"
        axes.axhline(goal, color=plotting.GRAY, linewidth=0.8, label=label)
    axes.set(xlabel="training steps", ylabel="validation accuracy (top-1)")
    plotting.share_legend(fig, columns=3)
    return fig
