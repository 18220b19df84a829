"""Figures of the study `whitening`."""

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS
from experiments.stats import estimates
from experiments.studies.whitening.config import Config


def plot_time(config: Config, taken: dict[str, np.ndarray]) -> Figure:
    """Plot milliseconds against d."""
    fig = plotting.figure()
    (axes,) = fig.axes
    for name, method, label in (("zca", "whitened", "ZCA"), ("bn", "batch", "BN")):
        style = METHODS[method]._replace(label=label)
        runs = 1e3 * taken[name].T
        plotting.band(axes, np.array(config.features), runs, style, geometric=True)
    axes.set(xlabel="features, d", ylabel="time of a forward pass, ms", xscale="log", yscale="log")
    axes.set_xticks(config.features, [str(d) for d in config.features])
    axes.minorticks_off()
    plotting.share_legend(fig)
    return fig


def plot_outside(results: dict[str, np.ndarray]) -> Figure:
    """Plot b, |W| and the loss over training."""
    fig = plotting.figure(3, width=3.3)
    panels = {
        "Bias": ("bias", 0, "bias b"),
        "Weights": ("scale", 0, "length of the weights, |W|"),
        "Loss with these weights": ("scale", 1, "loss"),
    }
    styles = {
        "outside": METHODS["none"]._replace(label="statistics as constants"),
        "inside": METHODS["batch"]._replace(label="BN inside the gradient"),
    }
    for axes, (title, (key, column, label)) in zip(fig.axes, panels.items(), strict=True):
        for name, style in styles.items():
            runs = results[f"{key}_{name}"][..., column].T
            plotting.band(axes, np.arange(len(runs)), runs, style)
        axes.set(title=title, xlabel="steps", ylabel=label)
    plotting.share_legend(fig)
    return fig


def plot_descent(
    losses: dict[str, np.ndarray], target: float, last: dict[str, np.ndarray], bound: float
) -> Figure:
    """Plot the training loss over the steps, and the last losses of networks that may get stuck.

    Each kind of input is shown at its best rate. A network that ends above the bound is stuck.
    """
    fig = plotting.figure(3, width=3.4, height=3.2)
    descent, ends, shares = fig.axes
    descent.set_xscale("log")
    for kind, runs in losses.items():
        plotting.band(descent, np.arange(1, runs.shape[1]), runs[:, 1:].T, kind, geometric=True)
    line = {"color": plotting.BLACK, "linestyle": ":", "linewidth": 1}
    descent.axhline(target, **line, label="loss to reach")
    descent.set(title="Logistic regression", xlabel="steps of descent", yscale="log")
    finite = np.concatenate([runs[np.isfinite(runs)] for runs in last.values()])
    top = 2 * finite.max(initial=bound)  # Where diverged networks are drawn.
    for at, (kind, runs) in enumerate(last.items()):
        style = METHODS[kind]
        marks = {"color": style.color, "marker": style.marker, "linestyle": "none"}
        beside = at + np.linspace(-0.3, 0.3, len(runs))
        ends.plot(beside, np.minimum(runs, top), alpha=0.6, markersize=3, **marks)
        share = estimates.share(runs > bound)
        bar = [[share.value - share.low], [share.high - share.value]]
        shares.errorbar([at], [share.value], np.maximum(bar, 0), capsize=2.5, **style._asdict())
    ends.axhline(bound, **line, label="above: stuck")
    ends.set(title="Small networks, every run", ylabel="last training loss, nats", yscale="log")
    shares.set(title="Share that is stuck", ylabel="share of runs", ylim=(-0.04, 1.04))
    for axes in (ends, shares):
        axes.set_xticks(range(len(last)), list(last))
        axes.set_xlim(-0.5, len(last) - 0.5)
    descent.set_ylabel("training loss, nats")
    plotting.legend_below(descent)
    plotting.legend_below(ends, points=24)
    return fig
