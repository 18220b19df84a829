"""Figures of the study `placement`."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS
from experiments.studies.placement.config import Config


def plot_order(
    config: Config, accuracy: dict[str, dict[str, Float[np.ndarray, "rates seeds"]]]
) -> Figure:
    """Draw test accuracy against the rate, BN before and after, for each nonlinearity."""
    fig = plotting.figure(3, width=3.3)
    styles = {
        "before": METHODS["batch"]._replace(label="BN before the nonlinearity"),
        "after": METHODS["layer"]._replace(linestyle="--", label="BN after the nonlinearity"),
    }
    for axes, activation in zip(fig.axes, accuracy["before"], strict=True):
        for order, style in styles.items():
            seen = accuracy[order][activation]
            plotting.band(axes, config.learning_rates, seen, style)
        axes.set(xscale="log", xlabel="learning rate", title=METHODS[activation].label)
        axes.set_xticks(config.learning_rates, [f"{rate:g}" for rate in config.learning_rates])
        axes.minorticks_off()
    fig.axes[0].set_ylabel("test accuracy")
    plotting.share_legend(fig)
    return fig


def plot_response(found: dict[str, list[np.ndarray]]) -> Figure:
    """Draw the test accuracy of every seed, without and with LRN, without and with BN."""
    fig = plotting.figure()
    (axes,) = fig.axes
    for norm, side in (("none", -0.03), ("batch", 0.03)):
        style = METHODS[norm]
        pairs, at = np.stack(found[norm]), np.array([0, 1]) + side
        axes.plot([0, 1], pairs, color=style.color, linewidth=0.7, alpha=0.5)
        plotting.bars(axes, at, pairs, style, joined=True, linewidth=2)
    axes.set_xticks([0, 1], ["without LRN", "with LRN"])
    axes.set(ylabel="test accuracy", xlim=(-0.3, 1.3))
    plotting.share_legend(fig)
    return fig
