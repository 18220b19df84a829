"""Figures of `titanic`, from what it found alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.stats import estimates
from experiments.studies.titanic.config import Config


class Results(NamedTuple):
    """What one kind of input and nonlinearity gave, for each method by seed: means over folds.

    - accuracy: after `epochs`; later: after `more`; every: after each epoch.
    - deviation: of the accuracy on one fold over the watched epochs.
    """

    accuracy: dict[str, Float[np.ndarray, "seeds"]]
    later: dict[str, Float[np.ndarray, "seeds"]]
    every: dict[str, Float[np.ndarray, "epochs seeds"]]
    deviation: dict[str, Float[np.ndarray, "seeds"]]


def label(name: str) -> str:
    """Name a setting below an axis."""
    scaling, activation = name.split("_")
    return f"{scaling}\n{plotting.METHODS[activation].label}"


def plot_intervals(
    axes: Any, runs: Mapping[str, Mapping[str, Float[np.ndarray, "seeds"]]], scale: float
) -> None:
    """Plot mean and interval of each method, setting by setting."""
    for shift, method in ((-0.12, "none"), (0.12, "batch")):
        style = plotting.METHODS[method]
        for at, by_method in enumerate(runs.values()):
            seen = estimates.mean(scale * by_method[method])
            axes.errorbar(
                at + shift,
                seen.value,
                [[seen.value - seen.low], [seen.high - seen.value]],
                color=style.color,
                marker=style.marker,
                capsize=3,
                linestyle="none",
                label=style.label if at == 0 else None,
            )
    axes.set_xticks(range(len(runs)), [label(name) for name in runs])


def plot_accuracy(
    config: Config, by_setting: dict[str, Results], logistic: float, majority: float
) -> Figure:
    """Plot the accuracy after `epochs`, and what BN gains then and later."""
    made = plotting.figure(2, width=5.4)
    left, right = made.axes
    plot_intervals(left, {name: results.accuracy for name, results in by_setting.items()}, 100)
    left.axhline(100 * logistic, color=plotting.BLACK, linewidth=1, linestyle="-.")
    left.text(2.5, 100 * logistic, "logistic regression", ha="center", va="bottom", fontsize=8)
    left.axhline(100 * majority, color=plotting.GRAY, linewidth=1, linestyle=":")
    left.text(2.5, 100 * majority, "all died", ha="center", va="bottom", fontsize=8)
    left.set(ylabel="test accuracy / %", title=f"Accuracy after {config.epochs:,} epochs")
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
    spans = ((-0.12, "accuracy", config.epochs, "o"), (0.12, "later", config.more, "^"))
    for shift, when, epochs, marker in spans:
        for at, results in enumerate(by_setting.values()):
            accuracy = getattr(results, when)
            seen = estimates.paired(100 * accuracy["batch"], 100 * accuracy["none"])
            right.errorbar(
                at + shift,
                seen.value,
                [[seen.value - seen.low], [seen.high - seen.value]],
                color=plotting.BLUE if when == "accuracy" else plotting.GREEN,
                marker=marker,
                capsize=3,
                linestyle="none",
                label=f"after {epochs:,} epochs" if at == 0 else None,
            )
    right.axhline(0, color=plotting.GRAY, linewidth=1)
    right.set_xticks(range(len(by_setting)), [label(name) for name in by_setting])
    right.set(ylabel="accuracy gained / points", title="With BN - without, paired by seed")
    right.legend()
    return made


def plot_epochs(config: Config, by_setting: dict[str, Results]) -> Figure:
    """Plot the accuracy over epochs."""
    made = plotting.figure(len(by_setting), width=3.4, height=3.4)
    every = np.array([list(results.every.values()) for results in by_setting.values()])
    low, high = every.mean(-1).min(), every.max()
    for axes, (name, results) in zip(made.axes, by_setting.items(), strict=True):
        for method, curve in results.every.items():
            plotting.band(axes, np.arange(config.more) + 1, 100 * curve, method)
        axes.axvline(config.epochs, color=plotting.GRAY, linewidth=1, linestyle=":")
        axes.set(xlabel="epochs", xscale="log", title=label(name).replace("\n", ", "))
        axes.set_ylim(100 * low - 1, 100 * high + 1)
    made.axes[0].set_ylabel("test accuracy, mean of folds / %")
    made.axes[0].legend(loc="lower right")
    return made


def plot_steadiness(
    config: Config, by_setting: dict[str, Results], one: Mapping[str, Float[np.ndarray, "epochs"]]
) -> Figure:
    """Plot one fold's accuracy over the watched epochs, and its deviation in every setting."""
    made = plotting.figure(2, width=5.4)
    left, right = made.axes
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
    left.legend()
    plot_intervals(right, {name: results.deviation for name, results in by_setting.items()}, 100)
    right.set(
        ylabel="standard deviation / points",
        title=f"Over the last {config.watched} of {config.epochs} epochs",
    )
    right.set_ylim(0, None)
    return made
