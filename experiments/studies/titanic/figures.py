"""Figures of the study `titanic`, drawn from its results alone."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plotting
from experiments.studies.titanic.config import Config


class Results(NamedTuple):
    """Results for one scaling of inputs and one nonlinearity: means over folds, by method and seed.

    - accuracy: accuracy after `epochs`; later: after `more`; every: after each epoch.
    - deviation: standard deviation of a fold's accuracy over the watched epochs.
    """

    accuracy: dict[str, Float[np.ndarray, "seeds"]]
    later: dict[str, Float[np.ndarray, "seeds"]]
    every: dict[str, Float[np.ndarray, "epochs seeds"]]
    deviation: dict[str, Float[np.ndarray, "seeds"]]


def label(name: str) -> str:
    """Return the tick label of a setting."""
    scaling, activation = name.split("_")
    return f"{scaling}\n{plotting.METHODS[activation].label}"


def plot_intervals(
    axes: Axes, runs: Mapping[str, Mapping[str, Float[np.ndarray, "seeds"]]], scale: float
) -> None:
    """Plot mean and interval of each method for every setting."""
    for shift, method in ((-0.12, "none"), (0.12, "batch")):
        scaled = scale * np.stack([by_method[method] for by_method in runs.values()])
        plotting.bars(axes, np.arange(len(runs)) + shift, scaled, method)
    axes.set_xticks(range(len(runs)), [label(name) for name in runs])


def plot_accuracy(
    config: Config, by_setting: dict[str, Results], logistic: float, majority: float
) -> Figure:
    """Plot the accuracy after `epochs`, and the gain by BN then and later."""
    fig = plotting.figure(2, width=3.9, height=3.5)
    left, right = fig.axes
    plot_intervals(left, {name: results.accuracy for name, results in by_setting.items()}, 100)
    reference = {"color": plotting.BLACK, "linewidth": 1}
    left.axhline(100 * logistic, linestyle="-.", label="logistic regression", **reference)
    left.axhline(100 * majority, linestyle=":", label="the majority for all", **reference)
    left.set(
        ylabel="test accuracy / %",
        title=f"Accuracy after {plotting.counted(config.epochs, 'epoch')}",
    )
    plotting.legend_below(left, points=32)
    spans = (
        (-0.12, "accuracy", config.epochs, plotting.METHODS["batch"]),
        (0.12, "later", config.more, plotting.METHODS["renorm"]),
    )
    right.axhline(0, color=plotting.BLACK, linewidth=0.8)
    for shift, when, epochs, style in spans:
        gains = [
            100 * (getattr(results, when)["batch"] - getattr(results, when)["none"])
            for results in by_setting.values()
        ]
        style = style._replace(label=f"after {plotting.counted(epochs, 'epoch')}")
        plotting.bars(right, np.arange(len(gains)) + shift, gains, style)
    right.set_xticks(range(len(by_setting)), [label(name) for name in by_setting])
    right.set(ylabel="accuracy gained / points", title="With BN - without, paired by seed")
    plotting.legend_below(right, points=32)
    return fig


def plot_epochs(config: Config, by_setting: dict[str, Results]) -> Figure:
    """Plot the accuracy over epochs."""
    fig = plotting.figure(len(by_setting), width=2.7, height=3.0)
    every = np.array([list(results.every.values()) for results in by_setting.values()])
    low, high = every.mean(-1).min(), every.max()
    for axes, (name, results) in zip(fig.axes, by_setting.items(), strict=True):
        axes.set_xscale("log")
        for method, curve in results.every.items():
            plotting.band(axes, np.arange(config.more) + 1, 100 * curve, method)
        line = {"color": plotting.BLACK, "linewidth": 1, "linestyle": ":"}
        axes.axvline(config.epochs, **line, label=plotting.counted(config.epochs, "epoch"))
        axes.set(xlabel="epochs", title=label(name).replace("\n", ", "))
        axes.set_ylim(100 * low - 1, 100 * high + 1)
    fig.axes[0].set_ylabel("test accuracy, mean of folds / %")
    plotting.share_legend(fig)
    return fig


def plot_steadiness(
    config: Config, by_setting: dict[str, Results], one: Mapping[str, Float[np.ndarray, "epochs"]]
) -> Figure:
    """Plot one fold's accuracy over the watched epochs, and its deviation in every setting."""
    fig = plotting.figure(2, width=3.9, height=3.2)
    left, right = fig.axes
    epochs = np.arange(config.epochs - config.watched, config.epochs)
    for method, curve in one.items():
        style = plotting.METHODS[method]
        left.plot(
            epochs + 1,
            100 * curve[epochs],
            color=style.color,
            ls=style.linestyle,
            label=style.label,
        )
    left.set(xlabel="epochs", ylabel="test accuracy / %", title="One fold of one seed, raw, ReLU")
    plot_intervals(right, {name: results.deviation for name, results in by_setting.items()}, 100)
    right.set(
        ylabel="standard deviation / points",
        title=f"Over the last {config.watched} of {plotting.counted(config.epochs, 'epoch')}",
    )
    right.set_ylim(0, None)
    plotting.share_legend(fig)
    return fig
