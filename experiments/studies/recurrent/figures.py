"""Figures of the study `recurrent`, from its parts alone."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit

from experiments import plotting
from experiments.studies.recurrent.config import (
    CHANCE,
    EVALUATE_EVERY,
    FORGET_BIASES,
    LENGTHS,
    STEPS_BACK,
    Config,
)


def lines(axes: Axes, x: ArrayLike, logs: Float[np.ndarray, "runs X"], **style: Any) -> None:
    """Draw the geometric mean over runs, given their logarithms, and their range as a band."""
    axes.plot(x, np.exp(logs.mean(0)), **style)
    low, high = np.exp(logs.min(0)), np.exp(logs.max(0))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def plot_memory(found: dict[str, np.ndarray]) -> Figure:
    """Plot the Jacobian against T: by cell, and for LSTMs by forget bias."""
    made = plotting.figure(2)
    runs = {**found, "state": found["state"][FORGET_BIASES.index(1)]}
    cells, biases = made.axes
    steps = np.arange(0, STEPS_BACK + 1, EVALUATE_EVERY)
    for method, key in (("lstm", "state"), ("gru", "gru"), ("rnn", "rnn")):
        style = plotting.METHODS[method]._replace(marker="")._asdict()
        lines(cells, steps, runs[key], **style)
    cells.set(title="whole state, forget bias of the LSTM 1", ylabel="|d state$_T$ / d state$_0$|")
    colors = plotting.VERMILION, plotting.BLUE, plotting.GREEN
    for bias, color, logs in zip(FORGET_BIASES, colors, found["memory"], strict=True):
        lines(biases, steps, logs, color=color, label=f"forget bias {bias}")
        biases.plot(steps, expit(float(bias)) ** steps, color=color, linestyle=":")
    biases.plot([], [], color=plotting.BLACK, linestyle=":", label="$\\sigma$(bias)$^T$")
    biases.set(title="LSTM, memory alone", ylabel="|d c$_T$ / d c$_0$|")
    for axes in made.axes:
        axes.set(xlabel="T, steps", yscale="log")
        axes.legend()
    return made


def plot_adding(config: Config, found: dict[tuple[str, int], np.ndarray]) -> Figure:
    """Plot the error over training, a panel for each length."""
    made = plotting.figure(len(LENGTHS), width=3.7)
    styles = {
        "rnn": {"color": plotting.VERMILION, "linestyle": "--", "label": "RNN"},
        "lstm": {"color": plotting.BLUE, "label": "LSTM, chrono"},
        "lstm_1": {"color": plotting.SKY, "linestyle": "-.", "label": "LSTM, forget bias 1"},
    }
    steps = np.linspace(0, config.steps, config.looks + 1)
    for axes, length in zip(made.axes, LENGTHS, strict=True):
        axes.axhline(CHANCE, color=plotting.BLACK, linestyle=":", linewidth=1, label="chance")
        for kind in ("rnn", "lstm", "lstm_1"):
            if (kind, length) in found:
                lines(axes, steps, np.log(found[kind, length]), **styles[kind])
        axes.set(title=f"T = {length}", xlabel="training steps", yscale="log", ylim=(5e-4, 3))
        axes.legend(loc="upper right", fontsize=8)
    made.axes[0].set_ylabel("mean squared error")
    return made
