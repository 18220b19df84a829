"""Figures of the study `inference`: kinds of statistics, test batches, and shifted images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS, LineStyle

POPULATION = METHODS["batch"]._replace(label="population, by the last weights")
AVERAGES = {
    "exponential_0.9": LineStyle(plotting.SKY, "-", "v", "exponential, .9"),
    "exponential_0.99": LineStyle(plotting.VERMILION, "-", "s", "exponential, .99"),
    "exponential_0.999": LineStyle(plotting.PURPLE, "-", "P", "exponential, .999"),
    "debiased": LineStyle(plotting.GRAY, "-", "X", "exponential, .99, debiased"),
    "window": LineStyle(plotting.GREEN, "-", "^", "mean of the last batches"),
    "cumulative": LineStyle(plotting.ORANGE, "-", "D", "mean since the start"),
}
BESIDE = {"debiased": 1.3, "window": 0.75}  # Factors that keep near points apart.
DIFFERENCES = {  # Of an image's outputs, by metric.
    "training_difference": "training,\ntwo batches",
    "inference_difference": "inference,\ntwo batches",
    "one_by_one": "inference, alone\nand in a batch",
}
SHIFTS = {"unchanged": "unchanged", "contrast": "contrast and\nbrightness", "rotation": "rotated"}


def plot_statistics(
    by: Mapping[str, Any],
    examples: Mapping[str, float],
    affine: Mapping[str, Float[np.ndarray, "seeds"]],
) -> Figure:
    """Plot error and accuracy of all kinds of statistics, and accuracy by averaged gamma and beta.

    Args:
      by: kind -> its error and accuracy.
      examples: kind -> number of examples behind it.
      affine: "last", or a kind of average -> test accuracy with that gamma and beta.
    """
    fig = plotting.figure(3, width=3.8, height=3.3)
    best = by["population"]["accuracy"]
    values = {
        name: (of["error"], 100 * (of["accuracy"] - best))
        for name, of in by.items()
        if name in examples
    }
    population = [name for name in examples if name.startswith("population")]
    for i, panel in enumerate(fig.axes[:2]):
        x, runs = [examples[name] for name in population], [values[name][i] for name in population]
        plotting.bars(panel, x, runs, POPULATION, joined=True)
        for name, style in AVERAGES.items():
            at = examples[name] * BESIDE.get(name, 1)
            plotting.bars(panel, [at], [values[name][i]], style)
        panel.set_xscale("log")
        panel.set_xlabel("examples that the statistics rest on")
    errors, accuracies, averaged = fig.axes
    errors.set_yscale("log")
    errors.set_ylabel("error of the worst mean\n(standard deviations)")
    errors.set_title("Error of the statistics")
    accuracies.set_ylabel("accuracy - that by all images\n(points)")
    accuracies.set_title("Accuracy by them")
    for name, style in AVERAGES.items():
        at = examples[name] * BESIDE.get(name, 1)
        plotting.bars(averaged, [at], [100 * (affine[name] - affine["last"])], style)
    averaged.set(xscale="log", xlabel="examples that the averages rest on")
    averaged.set_ylabel("accuracy - that by the last ones\n(points)")
    averaged.set_title("Gamma and beta averaged alike")
    for panel in (accuracies, averaged):
        panel.axhline(0, color=plotting.BLACK, linewidth=0.8)
        panel.set_yscale("symlog", linthresh=0.1)
        panel.margins(y=0.12)
    plotting.share_legend(fig, columns=3)
    return fig


def plot_test_batches(
    accuracy: Mapping[str, Any],
    sizes: Sequence[int],
    differences: Mapping[str, Float[np.ndarray, "seeds"]],
) -> Figure:
    """Plot test accuracy against test batch size, and how much outputs depend on the batch.

    Args:
      accuracy: from `measure.accuracies_on_test_batches`.
      sizes: batch sizes.
      differences: of one image's outputs, see `DIFFERENCES`.
    """
    fig = plotting.figure(2, width=3.9, height=3.2)
    panel, outputs = fig.axes
    ticks = [1, *sizes]
    for kind, style in (
        ("mixed", METHODS["batch"]._replace(label="mixed classes")),
        ("sorted", METHODS["none"]._replace(label="one class each")),
    ):
        runs = np.stack(
            [accuracy["alone"], *(accuracy[f"{kind}_{size}"]["batch"] for size in sizes)]
        )
        plotting.bars(panel, ticks, 100 * runs, style, joined=True)
    by_population = 100 * accuracy[f"mixed_{sizes[0]}"]["population"].mean()
    panel.axhline(by_population, color=plotting.GRAY, linestyle="-.", label="population statistics")
    panel.set_xscale("log")
    panel.set_xticks(ticks, [str(size) for size in ticks])
    panel.minorticks_off()
    panel.set_xlabel("examples in a test batch")
    panel.set_ylabel("test accuracy (%)")
    panel.set_title("Accuracy by statistics of test batches")
    plotting.legend_below(panel)

    rows = np.stack([differences[metric] for metric in DIFFERENCES])
    plotting.bars(outputs, range(len(rows)), rows, "batch")
    plotting.log_scale(outputs, "y", plotting.around(rows), rows)
    outputs.set_xticks(range(len(rows)), list(DIFFERENCES.values()))
    outputs.set(xlim=(-0.5, len(rows) - 0.5), ylabel="largest difference of logits")
    outputs.set_title("Outputs of the same images")
    return fig


def plot_shift(accuracy: Mapping[str, Any]) -> Figure:
    """Plot test accuracy on shifted images, with old and with new statistics."""
    fig = plotting.figure()
    (panel,) = fig.axes
    for side, how, color, hatch, label in (
        (-0.2, "trained", plotting.VERMILION, "//", "statistics of training images"),
        (0.2, "estimated", plotting.BLUE, "", "statistics of images shifted alike"),
    ):
        runs = 100 * np.stack([accuracy[name][how] for name in SHIFTS])
        y, low, high = plotting.around(runs)
        style = {"color": color, "hatch": hatch, "edgecolor": "white", "label": label}
        at = np.arange(len(SHIFTS)) + side
        panel.bar(at, y, 0.4, yerr=[y - low, high - y], capsize=3, **style)
    panel.set_xticks(range(len(SHIFTS)), list(SHIFTS.values()))
    panel.set_ylabel("test accuracy (%)")
    panel.set_ylim(0, 104)
    panel.grid(visible=False, axis="x")
    plotting.share_legend(fig, columns=2)
    return fig
