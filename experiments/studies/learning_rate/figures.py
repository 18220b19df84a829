"""Figures of the study `learning_rate`, of arrays (settings, seeds, ...)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments import plotting
from experiments.studies.learning_rate.config import DECAYS, HIGH, Config


def plot_grid(config: Config, last: Mapping[tuple[str, str], np.ndarray]) -> Figure:
    """Draw a heat map for each nonlinearity and method."""
    made = plotting.figure(2, 2, width=5.6, height=2.4)
    for axes, (names, accuracy) in zip(made.axes, last.items(), strict=True):
        mean = 100 * accuracy.mean(-1)
        image = axes.imshow(
            mean, cmap=plotting.SEQUENTIAL, vmin=0, vmax=100, origin="lower", aspect="auto"
        )
        for (y, x), value in np.ndenumerate(mean):
            color = "black" if value > 60 else "white"
            axes.text(x, y, f"{value:.0f}", color=color, ha="center", va="center")
        axes.set_title(", ".join(plotting.METHODS[name].label for name in names))
        axes.set_xticks(range(len(config.rates)), [f"{rate:g}" for rate in config.rates])
        axes.set_yticks(range(len(config.sigmas)), [f"{sigma:g}" for sigma in config.sigmas])
        axes.set(xlabel="learning rate", ylabel="sigma")
        axes.grid(visible=False)
    label = f"test accuracy after {config.grid_steps:,} steps / %"
    made.colorbar(image, ax=made.axes, label=label)
    return made


def plot_plateau(
    config: Config, stalled: np.ndarray, learning: np.ndarray, failed: np.ndarray
) -> Figure:
    """Draw accuracies over steps, and the share of failures by rate."""
    made = plotting.figure(2)
    left, right = made.axes
    for method, runs, every in (
        ("none", stalled, config.plateau_every),
        ("batch", learning, config.fast_every),
    ):
        steps = every * np.arange(1, runs.shape[1] + 1)
        plotting.band(left, steps, 100 * runs.T, method)
    left.set(xlabel="steps", ylabel="test accuracy / %", title="Sigmoid, sigma .05, rate .01")
    left.set(xscale="log", ylim=(0, 100))
    left.legend(loc="center right")
    right.plot(config.exploding_rates, 100 * failed.mean(1), **plotting.METHODS["none"]._asdict())
    right.set(
        xlabel="learning rate",
        ylabel=f"share that fails in {config.short_steps} steps / %",
        title="ReLU, sigma .5",
        xscale="log",
        ylim=(-4, 104),
    )
    right.legend(loc="lower right")
    return made


def plot_speed(
    config: Config,
    steps: Mapping[str, np.ndarray],
    end: Mapping[str, np.ndarray],
    decayed: np.ndarray,
) -> Figure:
    """Draw steps to 90 %, and last errors by rate and by half-life."""
    made = plotting.figure(3, width=4.2)
    left, middle, right = made.axes
    for method in steps:
        style = plotting.METHODS[method]._asdict()
        left.plot(config.fast_rates, steps[method].mean(1), **style)
        middle.plot(config.fast_rates, 100 * (1 - end[method].mean(1)), **style)
    half_lives = [factor * config.half_life for factor in DECAYS]
    right.plot(half_lives, 100 * (1 - decayed.mean(1)), **style)
    title, last = f"after {config.fast_steps:,} steps", "last test error / %"
    left.set(ylabel="steps to 90 %", yscale="log", title="Sigmoid")
    middle.set(ylabel=last, yscale="log", title=f"ReLU, {title}")
    right.set(ylabel=last, title=f"Sigmoid, from rate {HIGH:g}, {title}")
    for axes in made.axes:
        axes.set(xscale="log", xlabel="learning rate")
        axes.legend()
    right.set_xlabel("half-life of the rate / steps")
    return made
