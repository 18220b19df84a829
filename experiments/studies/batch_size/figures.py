"""Figures of `batch_size`, from what it found alone."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.plotting import METHODS, band, figure
from experiments.stats import estimates

Found = dict[str, np.ndarray]


class Results(NamedTuple):
    """What was found: test accuracy, (seeds,), by method and size; losses by kind of descent.

    - small, huge: at equal examples seen.
    - equal: of BN, at equal steps and rate.
    - losses: at the best rate, (seeds, evaluations), and how many examples there are between
      evaluations.
    """

    small: dict[str, Found]
    huge: dict[str, Found]
    equal: Found
    losses: dict[str, tuple[np.ndarray, int]]


def plot_sizes(results: Results, *examples: int) -> Figure:
    """Plot test error, whose logarithm tells .05 from .08, against the size of the batch."""
    made = figure(2, width=4.4, height=3.6)
    for axes, sweep, seen in zip(made.axes, results[:2], examples, strict=True):
        for method, found in sweep.items():
            band(
                axes, np.array([int(n) for n in found]), 1 - np.stack(list(found.values())), method
            )
        ticks = sorted({int(n) for found in sweep.values() for n in found})
        axes.set(xscale="log", yscale="log", xlabel="examples in a batch", ylabel="test error")
        axes.set_xticks(ticks, [f"{n}" for n in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{seen:,} examples seen")
        axes.legend(fontsize=8)
    return made


def plot_huge(results: Results, target: float) -> Figure:
    """Plot what huge batches lose, and how fast mini-batches and full batches descend."""
    made = figure(2, width=4.4, height=3.4)
    lost, descent = made.axes
    first, *_, last = results.huge["batch"]
    none, batch, ghost = (results.huge[name] for name in ("none", "batch", "ghost"))
    points = {
        "equal examples,\nwithout BN": ("none", none[last] - none[first]),
        "equal examples,\nBN": ("batch", batch[last] - batch[first]),
        "equal examples,\nghost BN": ("ghost", ghost[last] - batch[first]),
        "equal steps,\nBN": ("batch", results.equal[last] - results.equal[first]),
    }
    for i, (method, difference) in enumerate(points.values()):
        one, style = estimates.mean(difference), METHODS[method]
        ends = [[one.value - one.low], [one.high - one.value]]
        lost.errorbar(i, one.value, ends, color=style.color, marker=style.marker, capsize=3)
    lost.set_xticks(range(len(points)), list(points), fontsize=8)
    lost.axhline(0, color="black", linewidth=0.8)
    lost.set_ylabel(f"test accuracy, batches of {last} - of {first}")
    for kind, (losses, each) in results.losses.items():
        style = METHODS[{"mini": "batch", "full": "none"}[kind]]
        label = {"mini": f"batches of {first}", "full": "full batch"}[kind]
        seen = np.arange(1, losses.shape[1]) * each
        descent.plot(seen, losses[:, 1:].T, color=style.color, alpha=0.3, linewidth=0.7)
        descent.plot(seen, losses[:, 1:].mean(0), style.linestyle, color=style.color, label=label)
    descent.axhline(target, color="black", linewidth=0.8)
    descent.set(
        xscale="log", ylim=(0, 2.5), xlabel="examples seen", ylabel="training loss, without BN"
    )
    descent.legend()
    return made
