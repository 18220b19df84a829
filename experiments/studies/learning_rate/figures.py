"""Figures of the study `learning_rate`, drawn from arrays (settings, seeds, ...)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.stats import estimates
from experiments.studies.learning_rate.config import DECAYS, HIGH, Config


def plot_grid(config: Config, last: Mapping[tuple[str, str], np.ndarray]) -> Figure:
    """Draw a heat map for each nonlinearity and method."""
    fig = plotting.figure(2, 2, width=3.6, height=1.9)
    for axes, (names, accuracy) in zip(fig.axes, last.items(), strict=True):
        mean = 100 * accuracy.mean(-1)
        image = axes.imshow(
            mean, cmap=plotting.SEQUENTIAL, vmin=0, vmax=100, origin="lower", aspect="auto"
        )
        for (y, x), value in np.ndenumerate(mean):
            color = "black" if value > 60 else "white"
            axes.text(x, y, f"{value:.0f}", color=color, ha="center", va="center")
        axes.set_title(", ".join(plotting.METHODS[name].label for name in names))
        axes.set_xticks(
            range(len(config.rates)), [f"{rate:g}" for rate in config.rates], fontsize=8
        )
        axes.set_yticks(range(len(config.sigmas)), [f"{sigma:g}" for sigma in config.sigmas])
        axes.set(xlabel="learning rate", ylabel="sigma")
        axes.grid(visible=False)
    label = f"test accuracy after {plotting.counted(config.grid_steps, 'step')} / %"
    fig.colorbar(image, ax=fig.axes, label=label)
    return fig


def plot_plateau(
    config: Config, stalled: np.ndarray, learning: np.ndarray, failed: np.ndarray
) -> Figure:
    """Draw accuracies over steps, and the share of failures by rate."""
    fig = plotting.figure(2, width=3.9, height=3.2)
    left, right = fig.axes
    left.set_xscale("log")
    for method, runs, every in (
        ("none", stalled, config.plateau_every),
        ("batch", learning, config.fast_every),
    ):
        steps = every * np.arange(1, runs.shape[1] + 1)
        plotting.band(left, steps, 100 * runs.T, method)
    left.set(xlabel="steps", ylabel="test accuracy / %", title="Sigmoid, sigma .05, rate .01")
    left.set_ylim(0, 100)
    plotting.legend_below(left)
    style, shares = plotting.METHODS["none"], [estimates.share(runs) for runs in failed]
    y, low, high = 100 * np.array([share[:3] for share in shares]).T
    ends = np.maximum([y - low, high - y], 0)
    right.errorbar(config.exploding_rates, y, ends, capsize=2.5, **style._asdict())
    right.set(
        xlabel="learning rate",
        ylabel=f"share that fails in {plotting.counted(config.short_steps, 'step')} / %",
        title="ReLU, sigma .5",
        xscale="log",
        ylim=(-4, 104),
    )
    plotting.legend_below(right)
    return fig


def plot_speed(
    config: Config,
    steps: Mapping[str, np.ndarray],
    end: Mapping[str, np.ndarray],
    decayed: np.ndarray,
) -> Figure:
    """Draw steps to 90 %, and last errors by rate and by half-life."""
    fig = plotting.figure(3, width=3.5, height=3.2)
    left, middle, right = fig.axes
    for method, side in zip(steps, (0.97, 1.03), strict=True):  # Bars beside each other.
        rates = side * np.array(config.fast_rates)
        plotting.bars(left, rates, steps[method], method, geometric=True, joined=True)
        plotting.bars(middle, rates, 100 * (1 - end[method]), method, joined=True)
    half_lives = [factor * config.half_life for factor in DECAYS]
    plotting.bars(right, half_lives, 100 * (1 - decayed), "batch", joined=True)
    last = "last test error / %"
    left.set(ylabel="steps to 90 %", yscale="log", title="Sigmoid, speed")
    middle.set(ylabel=last, yscale="log", ylim=(1, 100))
    middle.set_title(f"ReLU, after {plotting.counted(config.fast_steps, 'step')}")
    right.set(ylabel=last, title=f"Sigmoid, rate falling from {HIGH:g}")
    for axes in fig.axes:
        axes.set(xscale="log", xlabel="learning rate")
    for axes in (left, middle):
        axes.set_xticks(config.fast_rates, [f"{rate:g}" for rate in config.fast_rates])
        axes.xaxis.minorticks_off()
    right.set_xlabel("half-life of the rate / steps")
    plotting.share_legend(fig)
    return fig
