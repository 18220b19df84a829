"""Figures of `inference`: statistics by the examples behind them, test batches, shifted images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plotting

AVERAGES = {  # Label, color, marker.
    "exponential_0.9": ("exponential, .9", plotting.SKY, "o"),
    "exponential_0.99": ("exponential, .99", plotting.VERMILION, "o"),
    "exponential_0.999": ("exponential, .999", plotting.PURPLE, "o"),
    "window": ("mean of the last batches", plotting.GREEN, "^"),
    "cumulative": ("mean since the start", plotting.ORANGE, "D"),
}
SHIFTS = {"unchanged": "unchanged", "contrast": "contrast and\nbrightness", "rotation": "rotated"}


def with_range(
    panel: Axes,
    x: Sequence[float],
    runs: Sequence[np.ndarray],
    color: str,
    marker: str,
    label: str,
) -> None:
    """Draw the mean over seeds and the range."""
    y = np.asarray(runs)
    ends = [y.mean(1) - y.min(1), y.max(1) - y.mean(1)]
    panel.errorbar(x, y.mean(1), ends, color=color, marker=marker, capsize=2, label=label)


def plot_statistics(by: Mapping[str, Any], examples: Mapping[str, float]) -> Figure:
    """Plot error and accuracy of all kinds of statistics."""
    made = plotting.figure(2)
    best = by["population"]["accuracy"]
    values = {
        name: (of["error"], 100 * (of["accuracy"] - best))
        for name, of in by.items()
        if name in examples
    }
    population = [name for name in examples if name.startswith("population")]
    for i, panel in enumerate(made.axes):
        x, runs = [examples[name] for name in population], [values[name][i] for name in population]
        with_range(panel, x, runs, plotting.BLUE, "s", "population, by the last weights")
        for name, (label, color, marker) in AVERAGES.items():
            with_range(panel, [examples[name]], [values[name][i]], color, marker, label)
        panel.set_xscale("log")
        panel.set_xlabel("examples that the statistics rest on")
    errors, accuracies = made.axes
    errors.set_yscale("log")
    errors.set_ylabel("error of the worst mean\n(standard deviations)")
    accuracies.set_yscale("symlog", linthresh=0.1)
    accuracies.set_ylabel("test accuracy - that by all images\n(points)")
    made.legend(*errors.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return made


def plot_test_batches(found: Mapping[str, Any], sizes: Sequence[int]) -> Figure:
    """Plot test accuracy against the size of test batches."""
    made = plotting.figure()
    (panel,) = made.axes
    ticks = [1, *sizes]
    for kind, *style in (
        ("mixed", plotting.BLUE, "o", "mixed classes"),
        ("sorted", plotting.VERMILION, "s", "one class each"),
    ):
        runs = np.stack([found["alone"], *(found[f"{kind}_{size}"]["batch"] for size in sizes)])
        with_range(panel, ticks, list(100 * runs), *style)
    by_population = 100 * found[f"mixed_{sizes[0]}"]["population"].mean()
    panel.axhline(by_population, color=plotting.GRAY, linestyle="-.", label="population statistics")
    panel.set_xscale("log")
    panel.set_xticks(ticks, [str(size) for size in ticks])
    panel.minorticks_off()
    panel.set_xlabel("examples in a test batch")
    panel.set_ylabel("test accuracy (%)")
    panel.legend(loc="center right")
    return made


def plot_shift(found: Mapping[str, Any]) -> Figure:
    """Plot test accuracy on shifted images, by old and by new statistics."""
    made = plotting.figure()
    (panel,) = made.axes
    for side, how, color, hatch, label in (
        (-0.2, "trained", plotting.VERMILION, "//", "statistics of training images"),
        (0.2, "estimated", plotting.BLUE, "", "statistics of images shifted alike"),
    ):
        y = 100 * np.stack([found[name][how] for name in SHIFTS])
        ends = [y.mean(1) - y.min(1), y.max(1) - y.mean(1)]
        style = {"color": color, "hatch": hatch, "edgecolor": "white", "label": label}
        panel.bar(np.arange(len(SHIFTS)) + side, y.mean(1), 0.4, yerr=ends, capsize=3, **style)
    panel.set_xticks(range(len(SHIFTS)), list(SHIFTS.values()))
    panel.set_ylabel("test accuracy (%)")
    panel.set_ylim(0, 130)
    panel.set_yticks(range(0, 101, 20))
    panel.legend(loc="upper center")
    return made
