"""Figures of the study `placement`."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS
from experiments.studies.placement.config import Config


def plot_order(
    config: Config,
    accuracy: dict[str, dict[str, Float[np.ndarray, "rates seeds"]]],
    gains: dict[str, Float[np.ndarray, "seeds"]],
) -> Figure:
    """Plot test accuracy against the rate, BN before and after, and the gain from a bias before BN.

    Args:
      accuracy: "before", "after" -> nonlinearity -> test accuracy.
      gains: nonlinearity -> test accuracy with a bias before BN - without, each at its best rate.
    """
    fig = plotting.figure(4, width=3.1)
    styles = {
        "before": METHODS["batch"]._replace(label="BN before the nonlinearity"),
        "after": METHODS["layer"]._replace(linestyle="--", label="BN after the nonlinearity"),
    }
    *panels, bias = fig.axes
    for axes, activation in zip(panels, accuracy["before"], strict=True):
        for order, style in styles.items():
            runs = accuracy[order][activation]
            plotting.band(axes, config.learning_rates, runs, style)
        axes.set(xscale="log", xlabel="learning rate", title=METHODS[activation].label)
        axes.set_xticks(config.learning_rates, [f"{rate:g}" for rate in config.learning_rates])
        axes.minorticks_off()
    panels[0].set_ylabel("test accuracy")
    points = 100 * np.stack([*gains.values(), np.mean(list(gains.values()), axis=0)])
    bias.axhline(0, color=plotting.BLACK, linewidth=0.8)
    style = styles["before"]._replace(label="_nolegend_")
    plotting.bars(bias, range(len(points)), points, style)
    names = [METHODS[activation].label for activation in gains]
    bias.set_xticks(range(len(points)), [*names, "mean"])
    bias.set(xlim=(-0.5, len(points) - 0.5), title="A bias kept before BN")
    bias.set_ylabel("accuracy gained (points)")
    plotting.share_legend(fig)
    return fig


def plot_response(accuracy: dict[str, list[np.ndarray]]) -> Figure:
    """Plot the test accuracy of every seed, without and with LRN, without and with BN."""
    fig = plotting.figure()
    (axes,) = fig.axes
    for norm, side in (("none", -0.03), ("batch", 0.03)):
        style = METHODS[norm]
        pairs, at = np.stack(accuracy[norm]), np.array([0, 1]) + side
        axes.plot([0, 1], pairs, color=style.color, linewidth=0.7, alpha=0.5)
        plotting.bars(axes, at, pairs, style, joined=True, linewidth=2)
    axes.set_xticks([0, 1], ["without LRN", "with LRN"])
    axes.set(ylabel="test accuracy", xlim=(-0.3, 1.3))
    plotting.share_legend(fig)
    return fig
