"""Figures of the study `recurrent`, drawn from its parts alone."""

import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit

from experiments import plotting
from experiments.plotting import METHODS, LineStyle
from experiments.stats import estimates
from experiments.studies.recurrent.config import (
    CHANCE,
    EVALUATE_EVERY,
    FORGET_BIASES,
    LENGTHS,
    STEPS_BACK,
    Config,
)

BIASES = {  # Line style of each forget bias.
    bias: METHODS[method]._replace(label=f"forget bias {bias}")
    for bias, method in zip(FORGET_BIASES, ("rnn", "lstm", "gru"), strict=True)
}
KINDS = {
    "rnn": METHODS["rnn"],
    "lstm": METHODS["lstm"]._replace(label="LSTM, chrono"),
    "lstm_1": LineStyle(plotting.SKY, "-.", "v", "LSTM, forget bias 1"),
}


def lines(axes: Axes, x: ArrayLike, logs: Float[np.ndarray, "runs X"], style: LineStyle) -> None:
    """Plot the geometric mean over runs, given their logarithms, and its interval as a band."""
    plotting.band(axes, x, np.exp(logs.T.astype(np.float64)), style, geometric=True)


def plot_memory(log_norms: dict[str, np.ndarray]) -> Figure:
    """Plot the norm of the Jacobian against T, by cell, and for LSTMs by forget bias."""
    fig = plotting.figure(2, width=4.0, height=3.3)
    runs = {**log_norms, "state": log_norms["state"][FORGET_BIASES.index(1)]}
    cells, biases = fig.axes
    steps = np.arange(0, STEPS_BACK + 1, EVALUATE_EVERY)
    for method, key in (("lstm", "state"), ("gru", "gru"), ("rnn", "rnn")):
        lines(cells, steps, runs[key], METHODS[method])
    cells.set(title="Whole state, forget bias of the LSTM 1", ylabel="|d state$_T$ / d state$_0$|")
    for (bias, style), logs in zip(BIASES.items(), log_norms["memory"], strict=True):
        lines(biases, steps, logs, style)
        theory = {"color": plotting.BLACK, "linestyle": (0, (1, 2)), "linewidth": 0.9}
        biases.plot(steps, expit(float(bias)) ** steps, **theory)
    biases.lines[-1].set_label("$\\sigma$(bias)$^T$")
    biases.set(title="LSTM, memory alone", ylabel="|d c$_T$ / d c$_0$|")
    for axes in fig.axes:
        axes.set(xlabel="T, steps", yscale="log")
        plotting.legend_below(axes, columns=3 if axes is cells else 2)
    return fig


def plot_adding(config: Config, errors: dict[tuple[str, int], np.ndarray]) -> Figure:
    """Plot the error over training, with one panel per length."""
    fig = plotting.figure(len(LENGTHS), width=3.3)
    steps = np.linspace(0, config.steps, config.looks + 1)
    for axes, length in zip(fig.axes, LENGTHS, strict=True):
        axes.axhline(CHANCE, color=plotting.BLACK, linestyle=":", linewidth=1, label="chance")
        for kind, style in KINDS.items():
            if (kind, length) in errors:
                lines(axes, steps, np.log(errors[kind, length]), style)
        axes.set(title=f"T = {length}", xlabel="training steps", yscale="log", ylim=(2e-4, 3))
    fig.axes[0].set_ylabel("mean squared error")
    plotting.share_legend(fig)
    return fig


def plot_clipping(config: Config, last: dict[str, np.ndarray]) -> Figure:
    """Plot the last error of every run, without and with clipping, and the share that diverged."""
    fig = plotting.figure(2, width=3.6)
    errors, shares = fig.axes
    names = {"unclipped": "without clipping", "clipped": "with clipping"}
    finite = np.concatenate([runs[np.isfinite(runs)] for runs in last.values()])
    top = 10 * finite.max(initial=config.clip_bound)
    styles = METHODS["none"], METHODS["batch"]
    for at, (name, style) in enumerate(zip(names, styles, strict=True)):
        runs = last[name]
        beside = at + np.linspace(-0.25, 0.25, len(runs))
        there, marks = np.isfinite(runs), {"color": style.color, "linestyle": "none"}
        errors.plot(beside[there], runs[there], marker=style.marker, **marks)
        errors.plot(beside[~there], np.full((~there).sum(), top), marker="x", **marks)
        share = estimates.share(~(runs <= config.clip_bound))
        ends = [[share.value - share.low], [share.high - share.value]]
        shares.errorbar([at], [share.value], np.maximum(ends, 0), capsize=2.5, **style._asdict())
    errors.plot([], [], "x", color=plotting.GRAY, label="not finite: at the upper edge")
    line = {"color": plotting.BLACK, "linestyle": ":", "linewidth": 1}
    errors.axhline(config.clip_bound, **line, label="above: diverged")
    errors.set(title="Error of every run", ylabel="last mean squared error", yscale="log")
    shares.set(title="Share that diverged", ylabel="share of runs", ylim=(-0.04, 1.04))
    for axes in fig.axes:
        axes.set_xticks(range(len(names)), list(names.values()))
        axes.set_xlim(-0.5, len(names) - 0.5)
    plotting.legend_below(errors, points=24, columns=1)
    return fig
