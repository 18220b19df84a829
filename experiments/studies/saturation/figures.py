"""Figures of the study `saturation`."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import stats

from experiments import plotting
from experiments.plotting import METHODS
from experiments.stats import estimates
from experiments.studies.saturation.config import Config
from experiments.studies.saturation.sigmoid import FLAT, ZONE, best_line, flat_from, saturated_share

# By kind of network, then by what was measured: (seeds, evaluations, ...).
Results = dict[str, dict[str, np.ndarray]]


def plot_zone() -> Figure:
    """Plot the sigmoid with its best line, the saturated share, and an unchanged shape."""
    fig = plotting.figure(3, width=3.4, height=3.4)
    zone, share, shape = fig.axes
    x, color = np.linspace(-6, 6, 601), METHODS["sigmoid"].color
    near, flat = x[np.abs(x) <= ZONE], flat_from(FLAT)
    zone.fill_between(
        x, stats.norm.pdf(x), color=plotting.GRAY, alpha=0.25, label="N(0, 1) density"
    )
    zone.plot(x, 1 / (1 + np.exp(-x)), color=color, label="sigmoid")
    line = 0.5 + best_line(ZONE)[0] * near
    zone.plot(near, line, "--", color=plotting.BLACK, label="best line within 1.96")
    zone.axvspan(-6, -flat, color=plotting.SKY, alpha=0.3, label="slope below .01")
    zone.axvspan(flat, 6, color=plotting.SKY, alpha=0.3)
    zone.set(xlabel="input", ylabel="output, or density", xlim=(-6, 6), ylim=(0, 1))
    zone.set_title("Where a sigmoid is flat")
    plotting.legend_below(zone)

    gamma, dots = np.linspace(0.5, 12, 200), np.array([1.0, 4.0, 10.0])
    share.plot(gamma, saturated_share(gamma), color=color)
    share.plot(dots, saturated_share(dots), "s", color=color)
    for at in dots:
        height = float(saturated_share(at))
        share.text(at + 0.3, height - 0.07, estimates.pretty(height))
    share.set_title("A Gaussian input there")
    share.set(xlabel="gamma: standard deviation of the input", ylim=(-0.1, 1))
    share.set(ylabel="share with slope below .01")

    x = np.linspace(-3, 5, 801)
    shape.plot(x, stats.expon.pdf(x), "--", color=plotting.VERMILION, label="exponential")
    shape.plot(x, stats.expon.pdf(x + 1), color=plotting.BLUE, label="normalized")
    shape.plot(x, stats.norm.pdf(x), ":", color=plotting.BLACK, label="N(0, 1)")
    shape.set(title="Normalization keeps the shape", xlabel="value", ylabel="density")
    plotting.legend_below(shape)
    return fig


def plot_saturated(config: Config, results: Results) -> Figure:
    """Plot saturated share and accuracy over training from large initial weights."""
    fig = plotting.figure(2, width=3.8)
    steps = np.linspace(0, config.steps, config.looks + 1)
    labels = {"saturated": "share of units with slope below .01", "test": "test accuracy"}
    for axes, (name, label) in zip(fig.axes, labels.items(), strict=True):
        for norm, history in results.items():
            plotting.band(axes, steps, history[name].T, norm)
        axes.set(xlabel="training step", ylabel=label, ylim=(-0.03, 1))
    fig.axes[0].set_title("Saturated units")
    fig.axes[1].set_title("Accuracy")
    plotting.share_legend(fig)
    return fig


def plot_learned(results: Results, gaussian: Float[np.ndarray, "seeds units"]) -> Figure:
    """Plot histograms of learned gamma and beta, and the active share of every ReLU of all seeds.

    Args:
      results: results of each nonlinearity at its best rate.
      gaussian: share of each ReLU's inputs above 0 if they were Gaussian before gamma and beta.
    """
    fig = plotting.figure(3, width=3.4, height=3.4)
    starts = {"scale": ("gamma", 1.0), "bias": ("beta", 0.0)}
    for axes, (name, (greek, start)) in zip(fig.axes[:2], starts.items(), strict=True):
        ends = [
            bound(history[name][:, -1])
            for history in results.values()
            for bound in (np.min, np.max)
        ]
        bins = np.linspace(min(ends), max(ends), 40).tolist()
        for activation, history in results.items():
            style = METHODS[activation]
            line = {"color": style.color, "linestyle": style.linestyle, "label": style.label}
            axes.hist(history[name][:, -1].ravel(), bins, histtype="step", density=True, **line)
        axes.axvline(start, color=plotting.BLACK, linewidth=1, label="at the start")
        axes.set(title=f"Learned {greek}", xlabel=greek, ylabel="density over units")
        plotting.legend_below(axes)
    axes, relu = fig.axes[2], results["relu"]
    axes.plot([0, 1], [0, 1], "--", color=plotting.GRAY, label="Gaussian inputs")
    color = METHODS["relu"].color
    axes.scatter(gaussian, relu["active"][:, -1], s=5, alpha=0.4, color=color, label="a ReLU")
    axes.plot(0.5, 0.5, "o", color=plotting.BLACK, label="gamma 1, beta 0")
    axes.set(xlabel="Phi(beta / |gamma|)", ylabel="share of inputs above 0", aspect="equal")
    axes.set_title("Active ReLUs")
    plotting.legend_below(axes)
    return fig
