"""Figures of the study `batch_size`, drawn from its results."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.plotting import (
    BLACK,
    METHODS,
    band,
    bars,
    figure,
    legend_below,
    log_scale,
    share_legend,
)

Accuracies = dict[str, np.ndarray]


class Results(NamedTuple):
    """Test accuracies, (seeds,), by method and batch size, and losses by kind of descent.

    - small, huge: at equal numbers of examples seen.
    - equal: with BN, at equal steps and rate.
    - losses: training losses at the best rate, (seeds, evaluations), and the number of examples
      between evaluations.
    """

    small: dict[str, Accuracies]
    huge: dict[str, Accuracies]
    equal: Accuracies
    losses: dict[str, tuple[np.ndarray, int]]


def plot_sizes(results: Results, *examples: int) -> Figure:
    """Plot test error against batch size, on a log scale that tells .05 from .08."""
    fig = figure(2, width=3.9, height=3.4)
    for axes, sweep, count in zip(fig.axes, results[:2], examples, strict=True):
        errors = {method: 1 - np.stack(list(by_size.values())) for method, by_size in sweep.items()}
        for method, by_size in sweep.items():
            band(axes, np.array([int(n) for n in by_size]), errors[method], method)
        ticks = sorted({int(n) for by_size in sweep.values() for n in by_size})
        axes.set(xscale="log", xlabel="examples in a batch", ylabel="test error")
        log_scale(axes, "y", *errors.values())
        axes.set_xticks(ticks, [f"{n}" for n in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{count:,} examples seen")
    share_legend(fig)
    return fig


def plot_huge(results: Results, target: float) -> Figure:
    """Plot the accuracy lost by huge batches, and how fast mini-batches and full batches train."""
    fig = figure(2, width=3.9, height=3.2)
    lost, descent = fig.axes
    first, *_, last = results.huge["batch"]
    none, batch, ghost = (results.huge[name] for name in ("none", "batch", "ghost"))
    points = {
        "examples,\nwithout BN": ("none", none[last] - none[first]),
        "examples,\nBN": ("batch", batch[last] - batch[first]),
        "examples,\nghost BN": ("ghost", ghost[last] - batch[first]),
        "steps,\nBN": ("batch", results.equal[last] - results.equal[first]),
    }
    lost.axhline(0, color=BLACK, linewidth=0.8)
    for i, (method, difference) in enumerate(points.values()):
        bars(lost, [i], [difference], method)
    lost.set_xticks(range(len(points)), list(points), fontsize=8)
    lost.set(xlim=(-0.5, len(points) - 0.5), xlabel="equal number of", title="Huge batches")
    lost.set_ylabel(f"test accuracy, batches of {last} - of {first}")
    descent.set_xscale("log")
    for kind, (losses, each) in results.losses.items():
        style = METHODS[{"mini": "batch", "full": "none"}[kind]]
        label = {"mini": f"batches of {first}", "full": "full batch"}[kind]
        examples = np.arange(1, losses.shape[1]) * each
        band(descent, examples, losses[:, 1:].T, style._replace(label=label))
    descent.axhline(target, color=BLACK, linestyle=":", linewidth=1, label="loss to reach")
    descent.set(title="Mini-batches and full batches, without BN")
    descent.set(ylim=(0, 2.5), xlabel="examples seen", ylabel="training loss")
    legend_below(descent, columns=3)
    return fig
