"""Figures of the study `batches`, drawn from its results."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.studies.batches.config import EVALUATIONS, ORDERS, Config


def plot_orders(of: dict[str, Any]) -> Figure:
    """Plot the test error of every run, and the means."""
    fig = plotting.figure(height=3.4)
    (panel,) = fig.axes
    errors = []
    for i, (name, by_order) in enumerate(of.items()):
        style = plotting.METHODS[name]
        at = np.arange(len(ORDERS)) + 0.24 * (i - 1)
        y = 100 * (1 - np.stack([by_order[order] for order in ORDERS]))
        points = {"color": style.color, "marker": style.marker, "linestyle": "none"}
        panel.plot(at + 0.07, y, **points, alpha=0.35, markersize=3)
        plotting.bars(panel, at, y, style, markersize=6)
        errors.append(y)
    panel.set_xticks(range(len(ORDERS)), list(ORDERS.values()))
    panel.set_xlabel("training batches")
    plotting.log_scale(panel, "y", *errors)
    panel.set_yticks((5, 10, 20, 50, 100), ("5", "10", "20", "50", "100"))
    panel.minorticks_off()
    panel.set_ylabel("test error (%)")
    plotting.share_legend(fig, columns=3)
    return fig


def plot_means(
    config: Config, error: Float[np.ndarray, "seeds S"], whole: dict[str, np.ndarray]
) -> Figure:
    """Plot the error of batch means by batch size, and the gain from statistics of all data."""
    fig = plotting.figure(2, width=4.0)
    means, gain = fig.axes
    sizes, style = np.array(config.sizes), plotting.METHODS["batch"]
    named = style._replace(linestyle="none", label="inputs of the last nonlinearity")
    plotting.band(means, sizes, error.T, named, geometric=True)
    ideal = error.mean(0)[0] * (sizes / sizes[0]) ** -0.5
    means.plot(sizes, ideal, color=plotting.BLACK, linestyle="--", label="slope -1/2")
    means.set_xscale("log", base=2)
    means.set_yscale("log", base=2)
    means.set(title="Mean of a batch", xlabel="examples in the batch")
    means.set_ylabel("mean |mean of batch - mean|\n(standard deviations)")
    plotting.legend_below(means)

    steps = np.linspace(0, config.whole_steps, EVALUATIONS + 1)
    points = 100 * (whole["all"] - whole["batch"]).T
    gain.axhline(0, color=plotting.BLACK, linewidth=0.8)
    gain.plot(steps, points, color=plotting.GRAY, alpha=0.4, linewidth=0.8)
    plotting.band(gain, steps, points, style._replace(label="mean"))
    gain.lines[1].set_label("a seed")
    gain.set(title="Normalized by all data", xlabel="training steps")
    gain.set_ylabel("test accuracy, all data - batch\n(points)")
    plotting.legend_below(gain)
    return fig
