"""How Fig. 1 is drawn."""

from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from experiments import plotting
from experiments.run_dir import Run
from experiments.stats.drift import PERCENTILES
from experiments.studies.mnist_mlp.fig1 import CURVES, read_metrics


def draw(run: Run, summary: dict[str, Any]) -> None:
    """Draw Fig. 1a, 1b and 1c, each alone and all in a row."""
    steps, accuracy, inputs = read_metrics(run)
    unit, data = summary["typical_unit"], summary["environment"]["data"]["name"]
    shown = {name: values[:, 0, :, unit] for name, values in inputs.items()}
    high = max(np.abs(values[steps > 0]).max() for values in shown.values()) * 1.05
    panels = {
        "fig1a": lambda axes: draw_accuracy(axes, steps, accuracy, data),
        "fig1b": lambda axes: draw_inputs(axes, steps, shown["without"], "without BN", high),
        "fig1c": lambda axes: draw_inputs(axes, steps, shown["with"], "with BN", high),
    }
    with mpl.rc_context(plotting.STYLE):
        for name, panel in panels.items():
            alone = plotting.figure()
            panel(alone.axes[0])
            plotting.save(alone, run.path / name)
        row = plotting.figure(3, width=4.1, height=3.3)
        for axes, (name, panel) in zip(row.axes, panels.items(), strict=True):
            panel(axes)
            axes.set_title(f"{name[-1]}) {axes.get_title()}")
        plotting.save(row, run.path / "fig1")


def draw_accuracy(
    axes: Axes, steps: np.ndarray, accuracy: dict[str, np.ndarray], data: str
) -> None:
    """Draw test accuracy against steps: mean over seeds, band from the lowest to the highest."""
    looks = {
        "without": (plotting.VERMILION, "--"),
        "with_population": (plotting.BLUE, "-"),
        "with_exponential": (plotting.GREEN, ":"),
    }
    for name, label in CURVES.items():
        color, line = looks[name]
        values = accuracy[name]
        axes.plot(steps, values.mean(1), line, color=color, label=label)
        axes.fill_between(steps, values.min(1), values.max(1), color=color, alpha=0.2, lw=0)
    seeds = values.shape[1]
    axes.set_title(f"Test accuracy, {data}" + (f": mean and range of {seeds} seeds" * (seeds > 1)))
    axes.set_ylabel("accuracy (share of test images)")
    learned = min(values[-1].mean() for values in accuracy.values()) > 0.9
    axes.set_ylim(0.7 if learned else 0, 1)  # As in the paper, where all there is to see is above.
    axes.legend(loc="lower right" if learned else "best")
    label_steps(axes, steps)


def draw_inputs(
    axes: Axes, steps: np.ndarray, values: Float[np.ndarray, "T 3"], network: str, high: float
) -> None:
    """Draw the 15th, 50th and 85th percentile of the input to one sigmoid against steps."""
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
    axes.set_title(f"Input to a last-layer sigmoid, {network}")
    axes.set_ylabel("input (percentiles over test images)")
    axes.set_ylim(-high, high)
    label_steps(axes, steps)


def label_steps(axes: Axes, steps: np.ndarray) -> None:
    """Label the axis of training steps."""
    axes.set_xlabel("training steps (batches)")
    axes.set_xlim(0, steps[-1])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
