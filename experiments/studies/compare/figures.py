"""Figures of the study `compare`."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import BLACK, BLUE, GRAY, METHODS, ORANGE, VERMILION, LineStyle
from experiments.studies.compare.config import Config

STYLES: dict[str, LineStyle] = {
    "none": METHODS["none"]._replace(label="no norm"),
    "batch": METHODS["batch"]._replace(label="batch norm"),
    "batch_bfloat16": LineStyle(BLUE, ":", "*", "batch norm, bfloat16"),
    "ghost": METHODS["ghost"]._replace(label="ghost batch norm"),
    "renorm": METHODS["renorm"],
    "layer": METHODS["layer"],
    "group": METHODS["group"],
    "instance": LineStyle(BLACK, ":", "p", "instance norm"),
    "weight": METHODS["weight"],
}
DATASETS = {
    "mnist": LineStyle(BLUE, "-", "o", "MNIST"),
    "fashion_mnist": LineStyle(ORANGE, "-", "D", "Fashion-MNIST"),
    "cifar10": LineStyle(VERMILION, "-", "s", "CIFAR-10"),
    "digits": LineStyle(GRAY, "-", "^", "the small digits"),
}
# Network, norm, batch size -> test accuracies, (seeds, evaluations).
Curves = Mapping[tuple[str, str, int], Float[np.ndarray, "seeds evaluations"]]


def name_of(config: Config, model: str) -> str:
    """Return the display name of a network."""
    layers = 2 + 2 * config.resnet_blocks * len(config.resnet_widths)
    return {"mlp": "MLP", "cnn": "CNN", "resnet20": f"ResNet-{layers}"}[model]


def plot_curves(
    config: Config, curves: Curves, seconds: Mapping[tuple[str, str, int], float]
) -> Figure:
    """Plot test accuracy against steps and against seconds, for one data set or their mean.

    Args:
      seconds: per step.
    """
    sizes = config.batch_sizes[::-1]
    fig = plotting.figure(2 * len(sizes), len(config.models), width=3.0, height=2.4)
    panels = np.array(fig.axes).reshape(len(config.models), -1)
    for row, model in zip(panels, config.models, strict=True):
        for i, size in enumerate(sizes):
            by_steps, by_seconds = row[2 * i : 2 * i + 2]
            between = config.examples // size // config.evaluations
            steps = np.arange(1, config.evaluations + 1) * between
            norms = [norm for of, norm, at in curves if (of, at) == (model, size)]
            for k, norm in enumerate(norms, 1):
                accuracies, taken = curves[model, norm, size], steps * seconds[model, norm, size]
                line = STYLES[norm]._replace(marker="")
                point = STYLES[norm]._replace(linestyle="none", label="")
                for axes, x in ((by_steps, steps), (by_seconds, taken)):
                    axes.plot(x, accuracies.mean(0), **line._asdict())
                beside = steps[-1] * (1 + 0.035 * k)  # All end at the same step: spread out.
                plotting.bars(by_steps, [beside], accuracies[:, -1:].T, point)
                plotting.bars(by_seconds, taken[-1:], accuracies[:, -1:].T, point)
            by_seconds.sharey(by_steps)
            for axes, label in ((by_steps, "steps"), (by_seconds, "seconds")):
                axes.set(title=f"{name_of(config, model)}, batches of {size}", xlabel=label)
                axes.set_xlim(left=0)
        row[0].set_ylabel("test accuracy")
    plotting.share_legend(fig, columns=5)
    return fig


def plot_last(
    config: Config, last: Mapping[str, Mapping[tuple[str, str, int], Float[np.ndarray, "seeds"]]]
) -> Figure:
    """Plot the final test accuracy of every norm, one series per data set.

    Args:
      last: data set -> network, norm, batch size -> test accuracies.
    """
    sizes = config.batch_sizes[::-1]
    fig = plotting.figure(len(config.models), len(sizes), width=3.4, height=3.0)
    panels = np.array(fig.axes).reshape(len(sizes), -1)
    norms = list(dict.fromkeys(config.norms))
    for row, size in zip(panels, sizes, strict=True):
        for axes, model in zip(row, config.models, strict=True):
            for i, (dataset, series) in enumerate(last.items()):
                drawn = [norm for norm in norms if (model, norm, size) in series]
                at = np.array([norms.index(norm) for norm in drawn]) + 0.16 * (
                    i - (len(last) - 1) / 2
                )
                runs = np.stack([series[model, norm, size] for norm in drawn])
                plotting.bars(axes, at, runs, DATASETS[dataset])
            axes.set_xticks(
                range(len(norms)), [STYLES[norm].label for norm in norms], rotation=40, ha="right"
            )
            axes.set(
                title=f"{name_of(config, model)}, batches of {size}",
                xlim=(-0.6, len(norms) - 0.4),
                ylim=(0, 1),  # Intervals of three seeds may extend beyond it.
            )
        row[0].set_ylabel("test accuracy")
    low, high = np.transpose([axes.get_ylim() for axes in fig.axes])
    for axes in fig.axes:
        axes.set_ylim(low.min(), high.max())
    plotting.share_legend(fig)
    return fig
