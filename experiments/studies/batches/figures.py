"""Figures of `batches`, from what it found alone."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.studies.batches.config import EVALUATIONS, ORDERS, Config


def plot_orders(of: dict[str, Any]) -> Figure:
    """Plot the error of every run, and the means."""
    made = plotting.figure()
    (panel,) = made.axes
    for i, (name, by_order) in enumerate(of.items()):
        style = plotting.METHODS[name]
        at = np.arange(len(ORDERS)) + 0.2 * (i - 1)
        y = 100 * (1 - np.stack([by_order[order] for order in ORDERS]))
        points = {"color": style.color, "marker": style.marker, "linestyle": "none"}
        panel.plot(at, y, **points, alpha=0.35, markersize=4)
        panel.plot(at, y.mean(1), **points, markersize=8, label=style.label)
    panel.set_xticks(range(len(ORDERS)), list(ORDERS.values()))
    panel.set_xlabel("training batches")
    panel.set_yscale("log")
    panel.set_yticks((5, 10, 20, 50, 100), ("5", "10", "20", "50", "100"))
    panel.minorticks_off()
    panel.set_ylabel("test error (%)")
    panel.legend(loc="upper left")
    return made


def plot_means(config: Config, error: Float[np.ndarray, "seeds S"]) -> Figure:
    """Plot the error of the mean against the size of the batch."""
    made = plotting.figure()
    (panel,), sizes = made.axes, np.array(config.sizes)
    for i, of_seed in enumerate(error):
        label = None if i else "pre-activations, a line a seed"
        panel.plot(
            sizes, of_seed, color=plotting.BLUE, marker="o", markersize=3, alpha=0.5, label=label
        )
    ideal = error.mean(0)[0] * (sizes / sizes[0]) ** -0.5
    panel.plot(sizes, ideal, color=plotting.BLACK, linestyle="--", label="slope -1/2")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xlabel("examples in the batch")
    panel.set_ylabel("mean |mean of batch - mean|\n(standard deviations)")
    panel.legend()
    return made


def plot_whole(config: Config, whole: dict[str, np.ndarray]) -> Figure:
    """Plot what statistics of all the data gain over training."""
    made = plotting.figure()
    (panel,) = made.axes
    steps = np.linspace(0, config.whole_steps, EVALUATIONS + 1)
    points = 100 * (whole["all"] - whole["batch"])
    panel.plot(steps, points.T, color=plotting.BLUE, alpha=0.35, linewidth=1)
    panel.plot(steps, points.mean(0), color=plotting.BLUE, linewidth=2.5, label="mean over seeds")
    panel.axhline(0, color=plotting.BLACK, linewidth=0.8)
    panel.set_xlabel("training steps")
    panel.set_ylabel("test accuracy, by all data - by the batch\n(points)")
    panel.legend()
    return made
