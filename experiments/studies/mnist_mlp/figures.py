"""The plots of Fig. 1."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments import plotting
from experiments.stats.drift import PERCENTILES
from experiments.studies.mnist_mlp.fig1 import CURVES, Metrics, typical_unit

Panel = Callable[[Axes], None]


def plot_fig1(metrics: Metrics, data: str) -> Figure:
    """Plot Fig. 1a, 1b and 1c in a row."""
    row = plotting.figure(3, width=3.5, height=3.2)
    for axes, (name, panel) in zip(row.axes, panels(metrics, data).items(), strict=True):
        panel(axes)
        axes.set_title(f"{name[-1]}) {axes.get_title()}")
    return row


def plot_panel(panel: Panel) -> Figure:
    """Plot one of the panels by itself."""
    fig = plotting.figure()
    panel(fig.axes[0])
    return fig


def panels(metrics: Metrics, data: str) -> dict[str, Panel]:
    """Make the functions that plot Fig. 1a, 1b and 1c; `data` is the name of the data set."""
    steps, accuracy, inputs = metrics
    unit = typical_unit(metrics)
    shown = {name: values[:, 0, :, unit] for name, values in inputs.items()}
    high = max(np.abs(values[steps > 0]).max() for values in shown.values()) * 1.05
    return {
        "fig1a": lambda axes: plot_accuracy(axes, steps, accuracy, data),
        "fig1b": lambda axes: plot_inputs(axes, steps, shown["without"], "without BN", high),
        "fig1c": lambda axes: plot_inputs(axes, steps, shown["with"], "with BN", high),
    }


def plot_accuracy(
    axes: Axes, steps: np.ndarray, accuracy: dict[str, np.ndarray], data: str
) -> None:
    """Plot test accuracy against steps: means over seeds, and their intervals as bands."""
    styles = {"without": "none", "with_population": "batch", "with_exponential": "renorm"}
    for name, label in CURVES.items():
        style = plotting.METHODS[styles[name]]._replace(label=label)
        plotting.band(axes, steps, accuracy[name], style)
    # The name of a user's own data may be too long, lack glyphs in the font, or parse as math.
    axes.set_title(
        f"Test accuracy, {plotting.DATA[data]}" if data in plotting.DATA else "Test accuracy"
    )
    axes.set_ylabel("share of test images")
    learned = min(values[-1].mean() for values in accuracy.values()) > 0.9
    axes.set_ylim(0.7 if learned else 0, 1)  # As in the paper; everything of interest is above.
    label_steps(axes, steps)
    plotting.legend_below(axes, columns=1)


def plot_inputs(
    axes: Axes, steps: np.ndarray, values: Float[np.ndarray, "T 3"], network: str, high: float
) -> None:
    """Plot the 15th, 50th and 85th percentile of the input to one sigmoid against steps."""
    color = plotting.VERMILION if network.startswith("without") else plotting.BLUE
    axes.fill_between(steps, values[:, 0], values[:, 2], color=color, alpha=0.15, lw=0)
    for column, (rank, line) in enumerate(zip(PERCENTILES, ("--", "-", "--"), strict=True)):
        axes.plot(steps, values[:, column], line, color=color)
        axes.annotate(
            f"{rank} %",
            (steps[-1], values[-1, column]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=color,
        )
    axes.set_title(f"Input to a sigmoid, {network}")
    axes.set_ylabel("input, percentiles")
    axes.set_ylim(-high, high)
    label_steps(axes, steps)


def label_steps(axes: Axes, steps: np.ndarray) -> None:
    """Label the axis of training steps."""
    axes.set_xlabel("training steps (batches)")
    axes.set_xlim(0, steps[-1])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
